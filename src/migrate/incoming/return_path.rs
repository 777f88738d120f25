//! The return path: what the source is told, and what was agreed over it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::channels::CHANNELS_MAX;
use super::{Error, Incoming};
use crate::io::{Connection, Limit, Ring, Writer};
use crate::migrate::capabilities::Capability;
use crate::stream::godwit::{self, Answer, Features};
use crate::stream::return_path::Reply;

/// The way back to the source, and what was agreed over it.
pub(super) struct ReturnPath {
    writer: Writer,
    two_way: bool,
    pub is_open: bool,
    pub is_godwit: bool,
    has_chosen: bool,
    pub features: Features,
}

/// How long SHUT 0 may stay unacknowledged before it counts as lost.
const ACKNOWLEDGED: Duration = Duration::from_secs(10);

impl ReturnPath {
    pub(super) fn new(connection: &Connection) -> Self {
        let writer = Writer::new(connection.fd.clone(), Arc::new(Limit::new(0)));
        let two_way = connection.is_two_way();
        let features = Features::empty();
        Self { writer, two_way, is_open: false, is_godwit: false, has_chosen: false, features }
    }

    pub(super) fn open(&mut self, ring: &mut Ring, incoming: &Incoming) -> Result<(), Error> {
        if !self.two_way {
            return Err(Error::Command("a return path over a one-way connection"));
        }
        self.is_open = true;
        // No device here has to prepare for the switch-over, so nothing is waited for.
        match incoming.settings.has(Capability::SwitchoverAck) {
            true => self.say(ring, &Reply::SwitchoverAck),
            false => Ok(()),
        }
    }

    pub(super) fn pong(
        &mut self,
        ring: &mut Ring,
        incoming: &Incoming,
        value: u32,
    ) -> Result<(), Error> {
        if !self.is_open {
            return Err(Error::Command("PING without a return path"));
        }
        if value == godwit::PING && incoming.settings.parameters().x_godwit_stream == "auto" {
            self.is_godwit = true;
            let main = incoming.guest.ram().main();
            let ram_is_zero = main.first_data(0..main.bytes())?.is_none();
            // The source plans with it how long the guest will stand still.
            let rehearsal = incoming.guest.rehearse().unwrap_or_default();
            let (features, channels) = (Features::all(), CHANNELS_MAX);
            let offer = Answer::Offer { features, channels, ram_is_zero, rehearsal };
            self.say(ring, &Reply::Other { kind: godwit::NUMBER, data: offer.data() })?;
        }
        self.say(ring, &Reply::Pong(value))
    }

    pub(super) fn chosen(&mut self, features: Features) -> Result<(), Error> {
        if !self.is_godwit || !Features::all().contains(features) {
            return Err(Error::NotOffered);
        }
        if std::mem::replace(&mut self.has_chosen, true) {
            return Err(Error::Command("a second choice of features"));
        }
        self.features = features;
        Ok(())
    }

    pub(super) fn say(&mut self, ring: &mut Ring, reply: &Reply) -> Result<(), Error> {
        let mut out = Vec::new();
        reply.write(&mut out);
        Ok(self.writer.write_all(ring, &out)?)
    }

    /// Tells the source why; it may be gone.
    pub(super) fn refuse(&mut self, ring: &mut Ring, error: &Error) {
        if self.is_godwit {
            let data = Answer::Refused(error.to_string()).data();
            let _ = self.say(ring, &Reply::Other { kind: godwit::NUMBER, data });
        }
        if self.is_open {
            let _ = self.say(ring, &Reply::Shut(1));
        }
    }

    /// Waits until the source's kernel has SHUT 0: from then on the source, if it lives, will not
    /// run the guest.
    pub(super) fn until_acknowledged(&mut self, ring: &mut Ring) -> Result<(), Error> {
        let end = Instant::now() + ACKNOWLEDGED;
        while self.writer.unacknowledged() > 0 {
            if Instant::now() >= end {
                return Err(Error::NobodyKnows);
            }
            ring.sleep_until(Instant::now() + Duration::from_millis(1))?;
        }
        Ok(())
    }
}
