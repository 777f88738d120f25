//! The report for a person.

use super::report::{Entry, RamCounts, Report, What};
use std::io::{self, Write};

/// Terminal emphasis, or nothing.
#[derive(Clone, Copy)]
pub(crate) struct Style {
    pub color: bool,
}

impl Style {
    fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    fn name(self, text: &str) -> String {
        self.paint("36", text)
    }

    fn bad(self, text: &str) -> String {
        self.paint("31;1", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.color && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

pub(crate) fn print(report: &Report, style: Style, out: &mut impl Write) -> io::Result<()> {
    head(report, style, out)?;
    for connection in &report.connections {
        writeln!(
            out,
            "\n{}  {}",
            style.bold(&connection.file),
            style.dim(&size(connection.bytes))
        )?;
        let width = connection.entries.iter().map(title_width).max().unwrap_or(0).min(60);
        for entry in &connection.entries {
            print_entry(entry, width, style, out)?;
        }
        if connection.entries_omitted > 0 {
            writeln!(out, "{:>12}  … and {} more", "", connection.entries_omitted)?;
        }
    }
    channels(report, style, out)?;
    passes(report, style, out)?;
    if let Some(description) = &report.description {
        let devices = match description.devices {
            Some(count) => format!("{count} devices"),
            None => style.bad("not the JSON it should be"),
        };
        writeln!(out, "\n{}  {devices}, {}", style.bold("description"), size(description.bytes))?;
    }
    if let Some(image) = &report.image {
        writeln!(out, "\n{}  {} as {}", style.bold(&image.file), size(image.bytes), image.block)?;
    }
    Ok(())
}

fn head(report: &Report, style: Style, out: &mut impl Write) -> io::Result<()> {
    if let Some(machine) = &report.machine {
        writeln!(out, "{}  {machine}", style.bold("machine     "))?;
    }
    if !report.capabilities.is_empty() {
        writeln!(out, "{}  {}", style.bold("capabilities"), report.capabilities.join(", "))?;
    }
    if let Some(uuid) = &report.uuid {
        writeln!(out, "{}  {uuid}", style.bold("uuid        "))?;
    }
    for (at, block) in report.blocks.iter().enumerate() {
        let title = if at == 0 { "memory      " } else { "            " };
        let mapped = match (block.mapped_pages_offset, block.mapped_pages) {
            (Some(offset), Some(pages)) => {
                format!("  {pages} pages in the file from {offset:#x} on")
            }
            _ => String::new(),
        };
        writeln!(out, "{}  {} {}{mapped}", style.bold(title), block.name, size(block.bytes))?;
    }
    Ok(())
}

fn title_width(entry: &Entry) -> usize {
    match &entry.what {
        What::Section { name, instance, .. } => title(name, *instance).len(),
        _ => 0,
    }
}

fn title(name: &str, instance: u32) -> String {
    if instance == 0 { name.to_owned() } else { format!("{name} {instance}") }
}

fn print_entry(entry: &Entry, width: usize, style: Style, out: &mut impl Write) -> io::Result<()> {
    let offset = style.dim(&format!("{:>12}", format!("{:#x}", entry.offset)));
    let indent = if entry.packaged { "  " } else { "" };
    match &entry.what {
        What::Section {
            kind,
            name,
            instance,
            version,
            bytes,
            device,
            note,
            subsections,
            fields,
            ram,
            ..
        } => {
            let title = title(name, *instance);
            let title =
                format!("{}{}", style.name(&title), " ".repeat(width.saturating_sub(title.len())));
            let version = if *kind == "START" || *kind == "FULL" {
                format!("v{version}")
            } else {
                String::new()
            };
            let device = note.as_ref().map_or_else(|| (*device).to_owned(), |note| style.bad(note));
            let contents = ram.map_or(device, |counts| ram_text(&counts));
            writeln!(
                out,
                "{offset}  {indent}{kind:<5} {title} {version:<4} {bytes:>10}  {contents}"
            )?;
            for name in subsections.iter().filter(|_| fields.is_empty()) {
                writeln!(out, "{:>12}  {indent}      {}", "", style.dim(name))?;
            }
            for field in fields {
                let indent = "  ".repeat(field.depth);
                writeln!(
                    out,
                    "{:>12}        {:>5} {:>5}  {indent}{:<40} {}",
                    "", field.offset, field.bytes, field.name, field.value
                )?;
            }
            Ok(())
        }
        What::Command { name, detail, .. } => {
            writeln!(out, "{offset}  {indent}{}  {detail}", style.name(name))
        }
        What::Reply { name, detail } => writeln!(out, "{offset}  {}  {detail}", style.name(name)),
        What::PackageEnd => writeln!(out, "{offset}  end of package"),
        What::EndOfStates => writeln!(out, "{offset}  end"),
    }
}

fn ram_text(counts: &RamCounts) -> String {
    let mut parts = Vec::new();
    for (count, what) in [(counts.pages, "pages"), (counts.zero, "zero"), (counts.deltas, "deltas")]
    {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    }
    if counts.deltas > 0 {
        parts.push(format!("{} of delta", size(counts.delta_bytes)));
    }
    if counts.flushes > 0 {
        parts.push(format!("{} multifd flush", counts.flushes));
    }
    if parts.is_empty() { "no pages".into() } else { parts.join(", ") }
}

fn channels(report: &Report, style: Style, out: &mut impl Write) -> io::Result<()> {
    for channel in &report.channels {
        writeln!(
            out,
            "\n{}  multifd channel {}: {} packets ({} sync), {} pages, {} zero, {} of data ({})",
            style.bold(&channel.file),
            channel.id,
            channel.packets,
            channel.syncs,
            channel.pages,
            channel.zero,
            size(channel.data_bytes),
            if channel.method.is_empty() { "none" } else { channel.method },
        )?;
    }
    Ok(())
}

fn passes(report: &Report, style: Style, out: &mut impl Write) -> io::Result<()> {
    if report.passes.len() > 1 {
        writeln!(out)?;
    }
    for (at, pass) in report.passes.iter().enumerate().filter(|_| report.passes.len() > 1) {
        if at == 20 && report.passes.len() > 24 {
            writeln!(out, "{:>12}  …", "")?;
        }
        if at < 20 || at + 4 > report.passes.len() || report.passes.len() <= 24 {
            writeln!(out, "{}  {}", style.bold(&format!("pass {:>7}", at + 1)), ram_text(pass))?;
        }
    }
    if report.kind == "migration" {
        writeln!(out, "{}  {}", style.bold("all memory  "), ram_text(&report.total))?;
    }
    Ok(())
}

/// Bytes for people: exact when small.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    let mut unit = 0;
    let mut value = bytes as f64 / 1024.0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let text = format!("{value:.1}");
    format!("{} {}", text.strip_suffix(".0").unwrap_or(&text), UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        assert_eq!(size(1000), "1000 bytes");
        assert_eq!(size(16 << 20), "16 MiB");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(u64::MAX), "16 EiB");
    }
}
