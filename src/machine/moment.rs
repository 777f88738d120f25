//! What may be done with a machine at which moment: one table, and the words of a refusal.
//!
//! A migration reads and writes a guest over some time, and so does a dump. What changes the guest
//! in between would leave one that is neither the old nor the new: it is refused, or put off until
//! the moment is over. [`Machine`](super::Machine) looks here under its own lock; monitors look
//! here before they run a command.

use Ruling::{Later, Now, Refused};

use super::RunState;

/// What somebody wants of the machine: a command of a monitor, or the guest itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Stop,
    Cont,
    Reset,
    Powerdown,
    Nmi,
    SetAction,
    Quit,
    /// `pmemsave`.
    SavePhysical,
    /// `memsave`: translates with a vCPU's registers.
    SaveVirtual,
    Dump,
    Migrate,
    MigrateIncoming,
    /// A device comes, goes or changes.
    ChangeDevice,
    GuestReset,
    GuestShutdown,
    GuestPanic,
}

/// What the machine is in the middle of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The guest is here, running or not, and nothing special happens.
    Ordinary,
    /// A migration sends RAM; whatever changes is sent again.
    Leaving,
    /// The guest stands still to be handed over (`pre-switchover`); its state has not been read.
    Switching,
    /// Its state was read (`device`), and whether it goes on here or there is not known yet.
    HandingOver,
    /// It went elsewhere (`postmigrate`), or nobody knows.
    Left,
    /// It is to come, or coming (`inmigrate`).
    Arriving,
    /// A dump keeps it as it is.
    Dumping,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ruling {
    Now,
    /// It is remembered, and done when the moment is over and the guest is this machine's.
    Later,
    /// Why not.
    Refused(&'static str),
}

const DUMP: Ruling = Refused("There is a dump in process, please wait.");
const NO_DUMP: Ruling = Refused("Dump not allowed during incoming migration.");
const DUMP_BLOCKED: Ruling = Refused(
    "disallowing migration blocker (migration/snapshot in progress) for: Live migration disabled: dump-guest-memory in \
     progress",
);
const BLOCKED: Ruling = Refused("Live migration disabled: dump-guest-memory in progress");
const MIGRATING: Ruling = Refused("There's a migration process in progress");
const NOT_FINAL: Ruling = Refused("Migration is not finalized yet");
const WAITING: Ruling = Refused("Guest is waiting for an incoming migration");
const GONE: Ruling = Refused("Can't migrate the vm that was paused due to previous migration");
const TO_COME: Ruling = Refused("the guest has not arrived yet; try again once it is here");
const BETWEEN: Ruling = Refused(
    "the guest is being handed over to another host; try again here or there once it is known where it goes on",
);

/// The rulings on each request, with its command if it has one, at the moments of [`Moment::ALL`]:
/// ordinary, leaving, switching, handing over, left, arriving, dumping.
///
/// * `stop` and `cont` of a guest to come say whether it starts. A `stop` during a hand-over counts
///   if the guest goes on here.
/// * A guest that was handed over takes a reset put off with it into oblivion: the target is asked
///   for another.
/// * The guest's own requests are carried out before its state is read, so that none is left at a
///   hand-over; a guest that does not run makes none.
/// * `migrate-incoming` has rules of its own, which know how the machine was started.
#[rustfmt::skip]
const TABLE: [(Request, Option<&str>, [Ruling; 7]); 16] = [
    (Request::Stop, Some("stop"), [Now, Now, Later, Later, Now, Later, DUMP]),
    (Request::Cont, Some("cont"), [Now, Now, NOT_FINAL, NOT_FINAL, Now, Later, DUMP]),
    (Request::Reset, Some("system_reset"), [Now, Now, Now, Later, Now, TO_COME, Later]),
    (Request::Powerdown, Some("system_powerdown"), [Now, Now, Now, BETWEEN, Now, TO_COME, Now]),
    (Request::Nmi, Some("inject-nmi"), [Now, Now, Now, BETWEEN, Now, TO_COME, DUMP]),
    (Request::SetAction, Some("set-action"), [Now, Now, Now, Now, Now, Now, Now]),
    (Request::Quit, Some("quit"), [Now, Now, Now, Now, Now, Now, Now]),
    (Request::SavePhysical, Some("pmemsave"), [Now, Now, Now, Now, Now, Now, Now]),
    (Request::SaveVirtual, Some("memsave"), [Now, Now, Now, Now, Now, TO_COME, Now]),
    (Request::Dump, Some("dump-guest-memory"), [Now, DUMP_BLOCKED, DUMP_BLOCKED, DUMP_BLOCKED, Now, NO_DUMP, DUMP]),
    (Request::Migrate, Some("migrate"), [Now, MIGRATING, MIGRATING, MIGRATING, GONE, WAITING, BLOCKED]),
    (Request::MigrateIncoming, Some("migrate-incoming"), [Now, Now, Now, Now, Now, Now, Now]),
    (Request::ChangeDevice, None, [Now, MIGRATING, MIGRATING, MIGRATING, Now, TO_COME, DUMP]),
    (Request::GuestReset, None, [Now, Now, Now, Later, Now, Later, Later]),
    (Request::GuestShutdown, None, [Now, Now, Now, Later, Now, Later, Later]),
    (Request::GuestPanic, None, [Now, Now, Now, Later, Now, Later, Now]),
];

/// The ruling on `request` at `moment`.
pub fn rule(request: Request, moment: Moment) -> Ruling {
    TABLE[request as usize].2[moment as usize]
}

impl Request {
    /// Every request, with the command that makes it.
    pub fn all() -> impl Iterator<Item = (Request, Option<&'static str>)> {
        TABLE.iter().map(|(request, command, _)| (*request, *command))
    }

    /// The request that a monitor's command makes; `None` for one that changes no machine.
    pub fn of_command(name: &str) -> Option<Request> {
        Self::all().find(|(_, command)| *command == Some(name)).map(|(request, _)| request)
    }
}

impl Moment {
    /// Every moment, in the order of the table.
    pub const ALL: [Moment; 7] = [
        Moment::Ordinary,
        Moment::Leaving,
        Moment::Switching,
        Moment::HandingOver,
        Moment::Left,
        Moment::Arriving,
        Moment::Dumping,
    ];

    /// As far as the run state tells.
    pub(crate) fn of(state: RunState) -> Moment {
        match state {
            RunState::InMigrate => Moment::Arriving,
            RunState::FinishMigrate => Moment::Switching,
            RunState::PostMigrate => Moment::Left,
            _ => Moment::Ordinary,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_stands_in_the_order_of_its_words() {
        for (row, (request, command)) in Request::all().enumerate() {
            assert_eq!(request as usize, row);
            if let Some(command) = command {
                assert_eq!(Request::of_command(command), Some(request));
            }
        }
        for (column, moment) in Moment::ALL.into_iter().enumerate() {
            assert_eq!(moment as usize, column);
        }
        assert_eq!(Request::of_command("query-status"), None);
    }

    #[test]
    fn nothing_changes_a_guest_whose_state_was_read() {
        for (request, _) in Request::all() {
            let harmless = matches!(
                request,
                Request::SetAction
                    | Request::Quit
                    | Request::SavePhysical
                    | Request::SaveVirtual
                    | Request::MigrateIncoming
            );
            assert_eq!(rule(request, Moment::HandingOver) == Now, harmless, "{request:?}");
        }
    }
}
