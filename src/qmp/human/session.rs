//! A person at a terminal: keys in, prompts and answers out. Where the keys come from does not matter
//! here: a connection of its own, or a console that several share.

use std::sync::Arc;

use super::completions;
use super::edit::{Editor, Key};
use crate::qmp::outbox::Outbox;
use crate::qmp::version::version;

const PROMPT: &str = "(qemu) ";
/// Of a list of words.
const COLUMNS: usize = 80;

/// One terminal.
pub(crate) struct Session {
    editor: Editor,
    outbox: Arc<Outbox>,
    focused: bool,
    /// It has been greeted.
    opened: bool,
}

impl Session {
    pub(in crate::qmp) fn new(outbox: Arc<Outbox>, focused: bool) -> Session {
        Session { editor: Editor::default(), outbox, focused, opened: false }
    }

    /// Says who is here.
    pub(in crate::qmp) fn open(&mut self) {
        let version = version();
        let number = |name: &str| version["qemu"][name].as_u64().unwrap_or(0);
        let (major, minor, micro) = (number("major"), number("minor"), number("micro"));
        self.opened = true;
        self.editor.restart();
        self.say(&format!(
            "QEMU {major}.{minor}.{micro} monitor - type 'help' for more information\r\n"
        ));
        self.prompt();
    }

    /// A prompt is shown again where keys come here again; what was typed before is given up.
    pub(in crate::qmp) fn focus(&mut self, focused: bool) {
        self.focused = focused;
        if focused && self.opened {
            self.editor.restart();
            self.prompt();
        }
    }

    /// Takes a key; a line is for the caller to run.
    pub(in crate::qmp) fn key(&mut self, byte: u8) -> Option<String> {
        let mut show = String::new();
        let key = self.editor.key(byte, &mut show);
        match key {
            Key::Complete => self.complete(&mut show),
            Key::Abandoned => show += PROMPT,
            Key::Taken | Key::Line(_) => {}
        }
        self.say(&show);
        match key {
            Key::Line(line) => Some(line),
            _ => None,
        }
    }

    /// What a line came to.
    pub(in crate::qmp) fn answered(&mut self, text: &str) {
        self.say(text);
        self.prompt();
    }

    pub(in crate::qmp) fn history(&self) -> Vec<String> {
        self.editor.history().map(str::to_owned).collect()
    }

    fn prompt(&self) {
        if self.focused {
            self.say(PROMPT);
        }
    }

    fn say(&self, text: &str) {
        if !text.is_empty() {
            self.outbox.say(text.as_bytes());
        }
    }

    /// Adds as much as all words that fit have in common, or lists them.
    fn complete(&mut self, show: &mut String) {
        let (word, all) = completions(self.editor.head());
        let common = common(&all).get(word.len()..).unwrap_or("").to_owned();
        match (&all[..], common.as_str()) {
            ([], _) => {}
            ([_], _) => self.editor.insert(&format!("{common} "), show),
            (_, "") => {
                *show += "\r\n";
                *show += &in_columns(&all);
                *show += PROMPT;
                self.editor.show(show);
            }
            _ => self.editor.insert(&common, show),
        }
    }
}

/// How all of them begin.
fn common<'a>(all: &[&'a str]) -> &'a str {
    let Some((first, others)) = all.split_first() else { return "" };
    let shared =
        |other: &&str| first.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
    let length = others.iter().map(shared).min().unwrap_or(first.len());
    &first[..length]
}

fn in_columns(all: &[&str]) -> String {
    let width = all.iter().map(|word| word.len()).max().unwrap_or(0) + 2;
    let each = (COLUMNS / width).max(1);
    let row = |words: &[&str]| {
        let cells: String = words.iter().map(|word| format!("{word:width$}")).collect();
        format!("{}\r\n", cells.trim_end())
    };
    all.chunks(each).map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(session: &Session) -> String {
        String::from_utf8(session.outbox.take_now()).unwrap()
    }

    fn typed(session: &mut Session, text: &str) -> Option<String> {
        text.bytes().filter_map(|byte| session.key(byte)).last()
    }

    #[test]
    fn a_person_is_greeted_prompted_and_helped() {
        let mut session = Session::new(Arc::new(Outbox::new(false)), true);
        session.open();
        let greeting = said(&session);
        assert!(greeting.starts_with("QEMU 10.0.2 monitor"), "{greeting}");
        assert!(greeting.ends_with(" monitor - type 'help' for more information\r\n(qemu) "));
        assert_eq!(typed(&mut session, "info sta\t\r").as_deref(), Some("info status "));
        assert_eq!(said(&session), "info status \r\n");
        session.answered("VM status: running\r\n");
        assert_eq!(said(&session), "VM status: running\r\n(qemu) ");
        assert_eq!(typed(&mut session, "system_\t"), None);
        assert_eq!(
            said(&session),
            "system_\r\nsystem_powerdown  system_reset      system_wakeup\r\n(qemu) system_"
        );
        assert_eq!(typed(&mut session, "\x03"), None);
        assert_eq!(said(&session), "^C\r\n(qemu) ");
    }

    #[test]
    fn keys_that_go_elsewhere_and_come_back_begin_a_line() {
        let mut session = Session::new(Arc::new(Outbox::new(false)), false);
        session.open();
        assert!(!said(&session).contains("(qemu)"));
        session.focus(true);
        typed(&mut session, "rubbish");
        session.focus(false);
        session.focus(true);
        assert_eq!(typed(&mut session, "stop\r").as_deref(), Some("stop"));
    }
}
