//! `godwit qmp` on a terminal: commands with completion from the machine's schema and a history,
//! and events shown as they come.

use super::error::Error;
use super::qmp::{self, Client};
use super::terminal::{say, show};
use super::typed::Schema;
use super::words::{send_by, words};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{CompletionType, Config, Context, Editor, ExternalPrinter, Helper};
use rustyline::{Highlighter, Hinter, Validator};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

const PROMPT: &str = "qmp> ";
/// How often events are looked for while nobody types a command, and for how long.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const LOOK_FOR: Duration = Duration::from_millis(1);

#[derive(Helper, Hinter, Highlighter, Validator)]
struct Words {
    /// Absent where the machine has none.
    schema: Option<Schema>,
}

impl Completer for Words {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        at: usize,
        _context: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        let line = line.get(..at).unwrap_or("");
        Ok(self.schema.as_ref().map_or((0, Vec::new()), |schema| schema.complete(line)))
    }
}

/// Reads commands until the input, or the machine, ends.
pub(crate) fn run(mut client: Client) -> Result<(), Error> {
    let config = Config::builder().completion_type(CompletionType::List).build();
    let mut editor: Editor<Words, FileHistory> = Editor::with_config(config)?;
    editor.set_helper(Some(Words { schema: Schema::ask(&mut client).ok() }));
    let history = history_file();
    if let Some(file) = &history {
        // There may be none yet.
        let _ = editor.load_history(file);
    }
    let client = Arc::new(Mutex::new(client));
    // A terminal that cannot do more than print lines (TERM=dumb) shows no events in between.
    if let Ok(printer) = editor.create_external_printer() {
        show_events(Arc::downgrade(&client), printer)?;
    }
    loop {
        let line = match editor.readline(PROMPT) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error.into()),
        };
        let words = words(&line);
        if words.is_empty() {
            continue;
        }
        let _ = editor.add_history_entry(line.trim());
        let schema = editor.helper().and_then(|helper| helper.schema.as_ref());
        let answer = send_by(&mut lock(&client), &words, schema);
        match answer {
            Ok(answer) => show(format_args!("{answer:#}\n"))?,
            Err(error @ (Error::Qmp(qmp::Error::Refused { .. }) | Error::Argument { .. })) => {
                say(format_args!("{error}"));
            }
            Err(error) => return Err(error),
        }
    }
    if let Some(file) = &history {
        // It is a convenience: a home that cannot be written is no error.
        let _ = file.parent().map(std::fs::create_dir_all);
        let _ = editor.save_history(file);
    }
    Ok(())
}

/// Shows what the machine says by itself, above the line that is being typed.
fn show_events(
    client: Weak<Mutex<Client>>,
    mut printer: impl ExternalPrinter + Send + 'static,
) -> Result<(), Error> {
    let look = move || {
        while let Some(client) = client.upgrade() {
            let event = lock(&client).event(LOOK_FOR);
            drop(client);
            let (text, over) = match event {
                Ok(None) => {
                    std::thread::sleep(LOOK_EVERY);
                    continue;
                }
                Ok(Some(event)) => (format!("{event}\n"), false),
                Err(_) => ("the machine has closed its monitor; Ctrl-D leaves\n".to_owned(), true),
            };
            if printer.print(text).is_err() || over {
                return;
            }
        }
    };
    std::thread::Builder::new().name("events".into()).spawn(look)?;
    Ok(())
}

/// Where earlier commands are kept: `$XDG_STATE_HOME`, or what it stands for.
fn history_file() -> Option<PathBuf> {
    let given = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let state = given("XDG_STATE_HOME").or_else(|| Some(given("HOME")?.join(".local/state")))?;
    Some(state.join("godwit/qmp-history"))
}

fn lock(client: &Mutex<Client>) -> MutexGuard<'_, Client> {
    client.lock().unwrap_or_else(PoisonError::into_inner)
}
