//! A small table on a terminal or in a file.

/// Rows under a heading, columns as wide as their widest cell; the first column flush left, the
/// others flush right.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<const N: usize>(heading: [&str; N]) -> Table {
        Table { rows: vec![heading.map(String::from).to_vec()] }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for (index, row) in self.rows.iter().enumerate() {
            for (column, cell) in row.iter().enumerate() {
                match column {
                    0 => write!(f, "{cell:<width$}", width = widths[0])?,
                    _ => write!(f, "   {cell:>width$}", width = widths[column])?,
                }
            }
            writeln!(f)?;
            if index == 0 {
                let rule: Vec<String> = widths.iter().map(|width| "─".repeat(*width)).collect();
                writeln!(f, "{}", rule.join("───"))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["", "plain", "xbzrle"]);
        table.row(["total time".into(), "12 s".into(), "7.5 s".into()]);
        table.row(["downtime".into(), "40 ms".into(), "9 ms".into()]);
        let expected = "\
             plain   xbzrle
──────────────────────────
total time    12 s    7.5 s
downtime     40 ms     9 ms
";
        let lines =
            |text: &str| text.lines().map(|l| l.trim_end().chars().count()).collect::<Vec<_>>();
        assert_eq!(lines(&table.to_string()).len(), lines(expected).len());
        assert!(table.to_string().contains("total time    12 s    7.5 s"), "{table}");
    }
}
