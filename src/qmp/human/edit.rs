//! A line as it is typed: keys in, what the terminal shows out. Pure; a line that is too long takes no
//! more and is given up at its end, so that memory is bounded whatever comes.

use std::collections::VecDeque;

const LINE_BYTES_MAX: usize = 4095;
const HISTORY_MAX: usize = 64;

/// The line, and those before it.
#[derive(Default)]
pub(super) struct Editor {
    line: String,
    /// A byte of it, at a boundary.
    cursor: usize,
    history: VecDeque<String>,
    /// Which of them is shown.
    shown: Option<usize>,
    /// Of a character of several bytes, or of an escape sequence.
    partial: Vec<u8>,
    escape: Escape,
    /// Something did not fit any more.
    cut: bool,
    /// A line feed behind it belongs to it.
    after_return: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Escape {
    #[default]
    None,
    Begun,
    /// `ESC [`, with the number that follows.
    Csi(u8),
    /// `ESC O`
    Ss3,
}

/// What comes of a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Key {
    Taken,
    /// The line is complete.
    Line(String),
    /// The rest of the word before the cursor is asked for.
    Complete,
    /// The line was given up.
    Abandoned,
}

impl Editor {
    /// Takes a byte; what is to be shown is put behind `show`.
    pub(super) fn key(&mut self, byte: u8, show: &mut String) -> Key {
        let follows_return = std::mem::take(&mut self.after_return);
        match (self.escape, byte) {
            (Escape::None, _) => {}
            (_, 0x1b) => return self.escaped(Escape::Begun),
            (Escape::Begun, b'[') => return self.escaped(Escape::Csi(0)),
            (Escape::Begun, b'O') => return self.escaped(Escape::Ss3),
            (Escape::Csi(n), b'0'..=b'9') => {
                let n = n.wrapping_mul(10).wrapping_add(byte - b'0');
                return self.escaped(Escape::Csi(n));
            }
            (Escape::Csi(_), b';') => return self.escaped(Escape::Csi(0)),
            (escape, _) => {
                self.escape = Escape::None;
                self.sequence(escape, byte, show);
                return Key::Taken;
            }
        }
        match byte {
            b'\n' if follows_return => {}
            b'\r' | b'\n' => {
                self.after_return = byte == b'\r';
                *show += "\r\n";
                if self.cut {
                    *show += &format!("a line has {LINE_BYTES_MAX} bytes at most\r\n");
                    self.restart();
                    return Key::Abandoned;
                }
                return Key::Line(self.take());
            }
            b'\t' => return Key::Complete,
            0x1b => self.escape = Escape::Begun,
            0x01 => self.move_to(0, show),
            0x02 => self.move_to(self.before(), show),
            0x03 => {
                *show += "^C\r\n";
                self.restart();
                return Key::Abandoned;
            }
            0x04 => self.remove(self.cursor, self.behind(), show),
            0x05 => self.move_to(self.line.len(), show),
            0x06 => self.move_to(self.behind(), show),
            0x08 | 0x7f => self.remove(self.before(), self.cursor, show),
            0x0b => self.remove(self.cursor, self.line.len(), show),
            0x0e => self.older(false, show),
            0x10 => self.older(true, show),
            0x15 => self.remove(0, self.cursor, show),
            0x17 => {
                let text = self.line[..self.cursor].trim_end();
                let start = text.rfind(' ').map_or(0, |at| at + 1);
                self.remove(start, self.cursor, show);
            }
            0x20.. => self.character(byte, show),
            _ => {}
        }
        Key::Taken
    }

    fn escaped(&mut self, escape: Escape) -> Key {
        self.escape = escape;
        Key::Taken
    }

    /// The end of an escape sequence.
    fn sequence(&mut self, escape: Escape, byte: u8, show: &mut String) {
        match (escape, byte) {
            (Escape::Csi(_) | Escape::Ss3, b'A') => self.older(true, show),
            (Escape::Csi(_) | Escape::Ss3, b'B') => self.older(false, show),
            (Escape::Csi(_) | Escape::Ss3, b'C') => self.move_to(self.behind(), show),
            (Escape::Csi(_) | Escape::Ss3, b'D') => self.move_to(self.before(), show),
            (Escape::Csi(_) | Escape::Ss3, b'H') | (Escape::Csi(1 | 7), b'~') => {
                self.move_to(0, show);
            }
            (Escape::Csi(_) | Escape::Ss3, b'F') | (Escape::Csi(4 | 8), b'~') => {
                self.move_to(self.line.len(), show);
            }
            (Escape::Csi(3), b'~') => self.remove(self.cursor, self.behind(), show),
            _ => {}
        }
    }

    fn character(&mut self, byte: u8, show: &mut String) {
        self.partial.push(byte);
        match std::str::from_utf8(&self.partial) {
            Ok(text) => {
                let text = text.to_owned();
                self.partial.clear();
                self.insert(&text, show);
            }
            // More of it is to come.
            Err(error) if error.error_len().is_none() => {}
            Err(_) => {
                let is_other = self.partial.len() > 1;
                self.partial.clear();
                if is_other {
                    self.character(byte, show);
                }
            }
        }
    }

    /// What a completion adds, or a key.
    pub(super) fn insert(&mut self, text: &str, show: &mut String) {
        if self.line.len() + text.len() > LINE_BYTES_MAX {
            self.cut = true;
            return;
        }
        self.line.insert_str(self.cursor, text);
        self.cursor += text.len();
        *show += text;
        self.show_rest(show);
    }

    /// The line in front of the cursor.
    pub(super) fn head(&self) -> &str {
        &self.line[..self.cursor]
    }

    /// An empty line.
    pub(super) fn restart(&mut self) {
        self.line.clear();
        self.cursor = 0;
        self.cut = false;
        self.shown = None;
        self.partial.clear();
        self.escape = Escape::None;
    }

    /// Shows the line again, behind a fresh prompt.
    pub(super) fn show(&self, show: &mut String) {
        *show += &self.line[..self.cursor];
        self.show_rest(show);
    }

    /// The lines before this one, the oldest first.
    pub(super) fn history(&self) -> impl Iterator<Item = &str> {
        self.history.iter().map(String::as_str)
    }

    fn take(&mut self) -> String {
        let line = std::mem::take(&mut self.line);
        self.restart();
        if !line.trim().is_empty() {
            // One that is typed again moves to the end.
            self.history.retain(|old| *old != line);
            self.history.push_back(line.clone());
            if self.history.len() > HISTORY_MAX {
                self.history.pop_front();
            }
        }
        line
    }

    fn older(&mut self, older: bool, show: &mut String) {
        let last = self.history.len().checked_sub(1);
        let next = match (self.shown, older) {
            (None, true) => last,
            (None, false) => return,
            (Some(at), true) => Some(at.saturating_sub(1)),
            (Some(at), false) => Some(at + 1).filter(|at| Some(*at) <= last),
        };
        if older && next.is_none() {
            return;
        }
        let line = next.and_then(|at| self.history.get(at)).cloned().unwrap_or_default();
        self.move_to(0, show);
        self.line = line;
        self.cursor = self.line.len();
        self.cut = false;
        self.shown = next;
        *show += &self.line;
        *show += "\x1b[K";
    }

    fn before(&self) -> usize {
        self.line[..self.cursor].char_indices().next_back().map_or(0, |(at, _)| at)
    }

    fn behind(&self) -> usize {
        self.line[self.cursor..].chars().next().map_or(self.cursor, |c| self.cursor + c.len_utf8())
    }

    fn move_to(&mut self, to: usize, show: &mut String) {
        if to < self.cursor {
            back(self.line[to..self.cursor].chars().count(), show);
        } else {
            *show += &self.line[self.cursor..to];
        }
        self.cursor = to;
    }

    fn remove(&mut self, from: usize, to: usize, show: &mut String) {
        if from == to {
            return;
        }
        self.move_to(from, show);
        self.line.replace_range(from..to, "");
        self.cut &= !self.line.is_empty();
        *show += &self.line[from..];
        *show += "\x1b[K";
        back(self.line[from..].chars().count(), show);
    }

    fn show_rest(&self, show: &mut String) {
        let rest = &self.line[self.cursor..];
        if !rest.is_empty() {
            *show += rest;
            back(rest.chars().count(), show);
        }
    }
}

fn back(columns: usize, show: &mut String) {
    if columns > 0 {
        *show += &format!("\x1b[{columns}D");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines that come of it.
    fn lines(keys: &[u8]) -> Vec<String> {
        let mut editor = Editor::default();
        let mut show = String::new();
        let line = |byte: &u8| match editor.key(*byte, &mut show) {
            Key::Line(line) => Some(line),
            _ => None,
        };
        keys.iter().filter_map(line).collect()
    }

    #[test]
    fn keys_edit_the_line() {
        for (keys, line) in [
            (&b"info\r"[..], "info"),
            (b"infx\x7fo\r", "info"),
            (b"nfo\x01i\r", "info"),
            (b"nfo\x1b[Hi\r", "info"),
            (b"ifo\x1b[D\x1b[Dn\r", "info"),
            (b"xinfo\x1b[1~\x1b[3~\r", "info"),
            (b"stop now\x17\x17info\r", "info"),
            (b"rubbish\x15info\r", "info"),
            (b"info status\x02\x02\x02\x02\x02\x02\x02\x0b\r", "info"),
            (b"\x04\x7f\x08\x17\x15\x1b[A\x1b[Binfo\r", "info"),
            (b"inf\x1b[Co\r", "info"),
            ("ä\x7finfo\r".as_bytes(), "info"),
            (b"\xff\xfeinfo\r", "info"),
            (b"\xc3info\r", "info"),
            (b"\xf0\x9f\x98info\r", "info"),
            (b"ifo\x1b\x1b[D\x1b[1\x1b[Dn\r", "info"),
            (b"rubbish\x03info\r", "info"),
        ] {
            assert_eq!(lines(keys), [line], "{keys:?}");
        }
    }

    #[test]
    fn a_line_ends_once() {
        assert_eq!(lines(b"a\r\nb\n\n\r\r\n"), ["a", "b", "", "", ""]);
    }

    #[test]
    fn earlier_lines_come_back() {
        assert_eq!(lines(b"a\rb\r\x1b[A\x1b[A\x1b[B\r")[2], "b");
        assert_eq!(lines(b"a\rb\r\x1b[A\x1b[A\r")[2], "a");
        assert_eq!(lines(b"a\rb\r\x10\x0e\r")[2], "");
        assert_eq!(
            lines(b"a\rb\ra\r\x10\x10\r")[3],
            "b",
            "one that is typed again moves to the end"
        );
    }

    #[test]
    fn what_has_no_end_takes_no_more() {
        let mut editor = Editor::default();
        let mut show = String::new();
        for _ in 0..1 << 20 {
            editor.key(b'x', &mut show);
        }
        assert_eq!((editor.line.len(), show.len()), (LINE_BYTES_MAX, LINE_BYTES_MAX));
        assert_eq!(editor.key(b'\r', &mut show), Key::Abandoned, "half a command is none");
        for n in 0..1000 {
            format!("\x15{n}\r").bytes().for_each(|byte| drop(editor.key(byte, &mut show)));
        }
        assert_eq!(editor.history().count(), HISTORY_MAX);
    }

    #[test]
    fn the_terminal_shows_the_line() {
        let mut editor = Editor::default();
        let mut show = String::new();
        for byte in b"ac\x02b" {
            editor.key(*byte, &mut show);
        }
        assert_eq!(show, "ac\x1b[1Dbc\x1b[1D");
    }
}
