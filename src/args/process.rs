//! Options about the process itself: `-name process=`, `-run-with`, `-sandbox`, `-add-fd`.

use super::error::{Error, Problem};
use super::keys::Keys;
use super::machine::into;
use super::{Key, value};
use crate::config::{Sandbox, SetDescriptor, User};

/// What `-run-with` said.
#[derive(Default)]
pub(crate) struct RunWith {
    pub exit_with_parent: bool,
    pub root: Option<String>,
    pub user: Option<User>,
}

pub(crate) const RUN_WITH: Keys<RunWith> = Keys {
    owner: "-run-with",
    implied: None,
    table: &[
        Key::set("exit-with-parent", "on|off", |r, v| into(v, &mut r.exit_with_parent)),
        Key::set("user", "NAME|UID:GID", |r, v| {
            r.user = Some(user(v)?);
            Ok(())
        }),
        Key::set("chroot", "DIR", |r, v| {
            r.root = Some(v.to_owned());
            Ok(())
        }),
        Key::only("async-teardown", &["off", "on"], "expects on or off"),
    ],
};

fn user(text: &str) -> Result<User, Problem> {
    const SHAPE: Problem = Problem::Malformed("a user's name or UID:GID");
    match text.split_once(':') {
        None if text.is_empty() => Err(SHAPE),
        None => Ok(User::Named(text.into())),
        Some((uid, gid)) => {
            // All ones are "no change" to the kernel.
            let id = |text: &str| text.parse().ok().filter(|id| *id != u32::MAX).ok_or(SHAPE);
            Ok(User::Numbers { uid: id(uid)?, gid: id(gid)? })
        }
    }
}

/// What `-sandbox` said.
#[derive(Default)]
pub(crate) struct SandboxDraft {
    on: bool,
    refuses: Sandbox,
}

impl SandboxDraft {
    pub(crate) fn finish(&self) -> Option<Sandbox> {
        self.on.then_some(self.refuses)
    }
}

pub(crate) const SANDBOX: Keys<SandboxDraft> = Keys {
    owner: "-sandbox",
    implied: Some("enable"),
    table: &[
        Key::set("enable", "on|off", |s, v| into(v, &mut s.on)),
        Key::set("obsolete", "allow|deny", |s, v| denies(v, &mut s.refuses.obsolete)),
        // No program that is started here has more rights than this process, in any case.
        Key::set("elevateprivileges", "allow|deny|children", |s, v| match v {
            "children" => {
                s.refuses.elevate = false;
                Ok(())
            }
            _ => denies(v, &mut s.refuses.elevate),
        }),
        Key::set("spawn", "allow|deny", |s, v| denies(v, &mut s.refuses.spawn)),
        Key::set("resourcecontrol", "allow|deny", |s, v| denies(v, &mut s.refuses.resources)),
    ],
};

fn denies(text: &str, place: &mut bool) -> Result<(), Problem> {
    *place = match text {
        "allow" => false,
        "deny" => true,
        _ => return Err(value::unknown(text, &["allow", "deny"])),
    };
    Ok(())
}

/// One `-add-fd`.
#[derive(Default)]
pub(crate) struct AddFd {
    number: Option<i32>,
    set: Option<i64>,
    opaque: Option<String>,
}

pub(crate) const ADD_FD: Keys<AddFd> = Keys {
    owner: "-add-fd",
    implied: None,
    table: &[
        Key::set("fd", "N", |a, v| {
            let number = value::number(v, 0, i32::MAX as u64)? as i32;
            if number <= 2 {
                return Err(Problem::Refused(
                    "standard input, output and errors stay what they are",
                ));
            }
            a.number = Some(number);
            Ok(())
        }),
        Key::set("set", "N", |a, v| {
            a.set = Some(value::number(v, 0, i32::MAX as u64)? as i64);
            Ok(())
        }),
        Key::set("opaque", "TEXT", |a, v| {
            a.opaque = Some(v.into());
            Ok(())
        }),
    ],
};

pub(crate) fn add_fd(option: &str, text: &str) -> Result<SetDescriptor, Error> {
    let mut given = AddFd::default();
    ADD_FD.read(option, text, &mut given)?;
    let missing = |key| Problem::MissingKey(key).at(option);
    let number = given.number.ok_or_else(|| missing("fd="))?;
    let set = given.set.ok_or_else(|| missing("set="))?;
    Ok(SetDescriptor { number, set, opaque: given.opaque })
}
