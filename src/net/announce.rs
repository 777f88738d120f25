//! Telling switches, and other hosts, where a card is now: a frame of the reverse address resolution
//! protocol in its name, several times, and the guest's own announcement where it can.

use std::sync::Arc;
use std::thread::Builder;
use std::time::Duration;

use super::Nets;
use crate::devices::{Card, Mac};

/// How often, and with which pauses between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rounds {
    /// Milliseconds until the second.
    pub initial: u64,
    /// How many milliseconds each further pause is longer.
    pub step: u64,
    /// None is longer than so many milliseconds.
    pub max: u64,
    pub count: u64,
}

impl Rounds {
    /// The pause after round `round`, counted from 0; `None` after the last.
    pub(crate) fn pause(&self, round: u64) -> Option<Duration> {
        let last = round + 1 >= self.count;
        let pause = self.initial.saturating_add(round.saturating_mul(self.step)).min(self.max);
        (!last).then(|| Duration::from_millis(pause))
    }
}

const FRAME_BYTES: usize = 60;

/// A request "who am I", broadcast by `mac`: what switches learn places from.
fn frame(mac: Mac) -> [u8; FRAME_BYTES] {
    let mut frame = [0; FRAME_BYTES];
    let parts: [&[u8]; 8] = [
        &[0xff; 6],
        &mac,
        // RARP; Ethernet, IPv4, lengths 6 and 4, "request reverse"; sender, no address, target.
        &[0x80, 0x35],
        &[0, 1, 8, 0, 6, 4, 0, 3],
        &mac,
        &[0; 4],
        &mac,
        &[0; 4],
    ];
    for (to, from) in frame.iter_mut().zip(parts.concat()) {
        *to = from;
    }
    frame
}

impl Nets {
    /// Announces the cards of these names, or all, for so many rounds. Another one under the same
    /// `id` takes this one's place.
    ///
    /// # Errors
    /// The system's, when there is no thread to be had: nothing was announced.
    pub fn announce(
        self: &Arc<Nets>,
        rounds: Rounds,
        only: Option<Vec<String>>,
        id: &str,
    ) -> std::io::Result<()> {
        let turn = {
            let mut inner = self.inner();
            let turn = inner.rounds.entry(id.to_owned()).or_default();
            *turn += 1;
            *turn
        };
        if rounds.count == 0 || self.inner().cards.is_empty() {
            return Ok(());
        }
        let (nets, id) = (Arc::downgrade(self), id.to_owned());
        Builder::new().name("announce".into()).spawn(move || {
            for round in 0.. {
                let Some(nets) = nets.upgrade() else { return };
                if nets.inner().rounds.get(&id) != Some(&turn) {
                    return;
                }
                nets.announce_once(only.as_deref());
                drop(nets);
                let Some(pause) = rounds.pause(round) else { return };
                std::thread::sleep(pause);
            }
        })?;
        Ok(())
    }

    fn announce_once(&self, only: Option<&[String]>) {
        let cards: Vec<(Arc<Card>, Option<String>)> = self.inner().cards.clone();
        for (card, on) in cards {
            if only.is_some_and(|only| !only.contains(&card.name)) {
                continue;
            }
            let state = card.state().clone();
            if let Some(netdev) = on.and_then(|on| self.find(&on)).filter(|_| !state.link_down) {
                netdev.send_own(&frame(state.filter.mac));
            }
            card.announce();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_as_qemus_do() {
        let rounds = Rounds { initial: 50, step: 100, max: 300, count: 5 };
        let pauses: Vec<_> = (0..5).map(|round| rounds.pause(round)).collect();
        let ms = |ms| Some(Duration::from_millis(ms));
        assert_eq!(pauses, [ms(50), ms(150), ms(250), ms(300), None]);
    }

    #[test]
    fn the_frame_is_a_broadcast_of_the_card() {
        let frame = frame([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        assert_eq!(frame[..14], *b"\xff\xff\xff\xff\xff\xff\x52\x54\x00\x12\x34\x56\x80\x35");
        assert_eq!(frame[20..32], *b"\x00\x03\x52\x54\x00\x12\x34\x56\x00\x00\x00\x00");
        assert_eq!(frame[32..38], [0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        assert!(frame[38..].iter().all(|byte| *byte == 0));
    }
}
