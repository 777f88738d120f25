//! A picture of hit rate by cache size, as SVG.

use std::fmt::Write;

/// One panel: a name and lines that share their x.
pub struct Panel {
    pub title: String,
    /// Hit rates in percent, by line, then by size.
    pub lines: Vec<Vec<f64>>,
}

/// What every panel shares.
pub struct Plot {
    pub title: String,
    /// Cache sizes in MiB.
    pub sizes: Vec<u64>,
    /// Name and colour of each line.
    pub lines: Vec<(&'static str, &'static str)>,
    pub panels: Vec<Panel>,
}

const COLUMNS: usize = 3;
const WIDTH: f64 = 300.0;
const HEIGHT: f64 = 200.0;
/// Room around a panel: left for numbers, top for its title, below for sizes.
const LEFT: f64 = 48.0;
const TOP: f64 = 34.0;
const BELOW: f64 = 44.0;
const HEAD: f64 = 58.0;

impl Plot {
    pub fn svg(&self) -> String {
        let rows = self.panels.len().div_ceil(COLUMNS);
        let width = COLUMNS as f64 * (LEFT + WIDTH) + 24.0;
        let height = HEAD + rows as f64 * (TOP + HEIGHT + BELOW);
        let mut out = String::new();
        let _ = writeln!(
            out,
            r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">"#
        );
        let _ = writeln!(out, r##"<rect width="100%" height="100%" fill="#ffffff"/>"##);
        text(&mut out, LEFT, 22.0, "start", 15, &self.title);
        self.legend(&mut out);
        for (number, panel) in self.panels.iter().enumerate() {
            let x = LEFT + (number % COLUMNS) as f64 * (LEFT + WIDTH);
            let y = HEAD + TOP + (number / COLUMNS) as f64 * (TOP + HEIGHT + BELOW);
            self.panel(&mut out, panel, x, y);
        }
        out.push_str("</svg>\n");
        out
    }

    fn legend(&self, out: &mut String) {
        let mut x = LEFT;
        for (line, (name, colour)) in self.lines.iter().enumerate() {
            stroke(out, &[(x, 42.0), (x + 26.0, 42.0)], colour, line);
            mark(out, (x + 13.0, 42.0), colour, line);
            text(out, x + 33.0, 46.0, "start", 12, name);
            x += 60.0 + 7.0 * name.len() as f64;
        }
    }

    fn panel(&self, out: &mut String, panel: &Panel, x: f64, y: f64) {
        text(out, x, y - 10.0, "start", 13, &panel.title);
        for percent in [0, 25, 50, 75, 100] {
            let at = y + HEIGHT - HEIGHT * f64::from(percent) / 100.0;
            let _ = writeln!(out, r##"<path d="M{x} {at}h{WIDTH}" stroke="#dddddd"/>"##);
            text(out, x - 6.0, at + 4.0, "end", 11, &format!("{percent} %"));
        }
        let step = WIDTH / (self.sizes.len() - 1) as f64;
        for (number, size) in self.sizes.iter().enumerate() {
            text(out, x + number as f64 * step, y + HEIGHT + 15.0, "middle", 11, &size.to_string());
        }
        text(out, x + WIDTH / 2.0, y + HEIGHT + 31.0, "middle", 11, "cache size, MiB");
        // The first line is drawn last, on top.
        for (line, rates) in panel.lines.iter().enumerate().rev() {
            let colour = self.lines[line].1;
            let at = |(number, rate): (usize, &f64)| {
                (x + number as f64 * step, y + HEIGHT - HEIGHT * rate / 100.0)
            };
            let points: Vec<(f64, f64)> = rates.iter().enumerate().map(at).collect();
            stroke(out, &points, colour, line);
            points.iter().for_each(|&point| mark(out, point, colour, line));
        }
    }
}

fn stroke(out: &mut String, points: &[(f64, f64)], colour: &str, line: usize) {
    let dash = ["", r#" stroke-dasharray="6 3""#, r#" stroke-dasharray="2 3""#][line % 3];
    let list: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ = writeln!(
        out,
        r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>"#,
        list.join(" ")
    );
}

/// Lines are told apart by mark and dash as well as by colour.
fn mark(out: &mut String, (x, y): (f64, f64), colour: &str, line: usize) {
    let _ = match line % 3 {
        0 => writeln!(out, r#"<circle cx="{x:.1}" cy="{y:.1}" r="3.2" fill="{colour}"/>"#),
        1 => writeln!(
            out,
            r#"<rect x="{:.1}" y="{:.1}" width="5" height="5" fill="{colour}"/>"#,
            x - 2.5,
            y - 2.5
        ),
        _ => writeln!(
            out,
            r##"<circle cx="{x:.1}" cy="{y:.1}" r="2.6" fill="#ffffff" stroke="{colour}" stroke-width="1.5"/>"##
        ),
    };
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, size: u32, words: &str) {
    let _ = writeln!(
        out,
        r##"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" font-size="{size}" fill="#222222">{words}</text>"##
    );
}
