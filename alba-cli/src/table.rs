//! Tables for people: aligned columns, nothing a pipe would have to strip.

use comfy_table::{Cell, CellAlignment, Table};

/// Columns are aligned left, those whose header begins with `>` right.
pub(crate) fn table(headers: &[&str], rows: Vec<Vec<String>>) -> String {
    let right = |header: &str| header.starts_with('>');
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    // Never wrapped or cut: `grep` and `awk` come after.
    table.set_content_arrangement(comfy_table::ContentArrangement::Disabled);
    let align = |text: &str, header: &str| {
        let alignment = if right(header) { CellAlignment::Right } else { CellAlignment::Left };
        Cell::new(text).set_alignment(alignment)
    };
    table.set_header(headers.iter().map(|header| align(header.trim_start_matches('>'), header)));
    for row in rows {
        table.add_row(row.iter().zip(headers).map(|(text, header)| align(text, header)));
    }
    let lines: Vec<String> = table
        .lines()
        // The style pads every cell with a space on both sides.
        .map(|line| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned())
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_with_text() {
        let row = |a: &str, b: &str| vec![a.to_owned(), b.to_owned()];
        let text = table(&["NAME", ">SIZE", "X"], vec![row("a", "1"), row("longer", "100")]);
        let lines: Vec<&str> = text.lines().collect();
        let size_ends = |word: &str, line: &str| line.find(word).map(|at| at + word.len());
        assert_eq!(lines.len(), 3);
        assert_eq!(size_ends("SIZE", lines[0]), size_ends("1", lines[1]));
        assert_eq!(size_ends("SIZE", lines[0]), size_ends("100", lines[2]));
        assert!(lines.iter().all(|line| !line.starts_with(' ') && !line.ends_with(' ')), "{text:?}");
    }
}
