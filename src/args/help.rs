//! The help page of `godwit run`, made from the table of options.

use super::table::{Does, OPTIONS, Opt, Section};

/// How the page is dressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Plain,
    /// Bold headings and option names, for a terminal.
    Terminal,
}

impl Style {
    fn bold(self, text: &str) -> String {
        match self {
            Style::Plain => text.into(),
            Style::Terminal => format!("\x1b[1m{text}\x1b[0m"),
        }
    }
}

const WIDTH: usize = 100;
const INDENT: usize = 10;

pub(crate) fn page(style: Style) -> String {
    let mut page = format!(
        "Run a guest, with QEMU's own options.\n\n{} godwit run -M microvm -kernel FILE [OPTION…]\n",
        style.bold("Usage:")
    );
    for (section, title) in Section::ALL {
        page += &format!("\n{}\n", style.bold(&format!("{title}:")));
        let options = OPTIONS.iter().filter(|opt| opt.section == section);
        page += &match section {
            Section::Accepted => wrap(options.map(accepted).collect::<Vec<_>>().join("   "), 2),
            Section::NotBuilt => grouped(options),
            _ => options.map(|opt| described(opt, style)).collect(),
        };
    }
    page += &format!(
        "\n{}\n  godwit run -M microvm -m 256 -kernel builtin -append 'ws=64 rate=2000' -serial stdio\n  godwit \
         run -M microvm -m 2G -smp 2 -kernel vmlinuz -initrd initrd.img -append console=ttyS0 \\\n      -serial \
         stdio -qmp unix:/run/guest.qmp,server=on,wait=off\n",
        style.bold("Examples:")
    );
    page
}

fn described(opt: &Opt, style: Style) -> String {
    let names: Vec<String> = opt.names.iter().map(|name| format!("-{name}")).collect();
    let value = opt.value.map_or(String::new(), |value| format!(" {value}"));
    format!("  {}{value}\n{}", style.bold(&names.join(", ")), wrap(opt.help.into(), INDENT))
}

fn accepted(opt: &Opt) -> String {
    match (&opt.does, opt.value) {
        (Does::Only(values), _) => format!("-{} {}", opt.names[0], values[0]),
        (_, Some(value)) => format!("-{} {value}", opt.names[0]),
        _ => format!("-{}", opt.names[0]),
    }
}

/// Refused options, those with the same reason together.
fn grouped<'a>(options: impl Iterator<Item = &'a Opt>) -> String {
    let mut groups: Vec<(&str, Vec<String>)> = Vec::new();
    for opt in options {
        let names = opt.names.iter().map(|name| format!("-{name}"));
        match groups.iter_mut().find(|(reason, _)| *reason == opt.help) {
            Some((_, group)) => group.extend(names),
            None => groups.push((opt.help, names.collect())),
        }
    }
    groups.iter().map(|(reason, names)| wrap(format!("{}: {reason}", names.join(" ")), 2)).collect()
}

/// Lines of at most [`WIDTH`] characters, all but the first of them indented by two more.
fn wrap(text: String, indent: usize) -> String {
    let mut lines = String::new();
    let mut line = " ".repeat(indent);
    for word in text.split(' ') {
        if line.trim_end().len() > indent && line.chars().count() + word.chars().count() >= WIDTH {
            lines += line.trim_end();
            lines.push('\n');
            line = " ".repeat(indent + 2);
        }
        line += word;
        line.push(' ');
    }
    lines + line.trim_end() + "\n"
}
