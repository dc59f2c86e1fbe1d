//! A plot as SVG: panels one below the other with one axis of rounds.

use std::fmt::Write;

const WIDTH: f64 = 790.0;
const PANEL: f64 = 240.0;
/// Left, right, above and below a panel.
const MARGIN: (f64, f64, f64, f64) = (70.0, 220.0, 40.0, 46.0);

/// A line of a panel.
pub(crate) struct Line {
    pub(crate) name: &'static str,
    pub(crate) colour: &'static str,
    pub(crate) dashed: bool,
    /// One value for each round, from 0 on; of a constant one value is enough.
    pub(crate) values: Vec<f64>,
}

/// Lines over the same rounds and with one unit.
pub(crate) struct Panel {
    pub(crate) title: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) lines: Vec<Line>,
}

/// Distance of the marks of an axis that ends at `most`: 1, 2 or 5 times a power of ten, at most eight marks.
fn step(most: f64) -> f64 {
    let mut power = 1.0;
    while power * 10.0 < most {
        power *= 10.0;
    }
    let fine = [power / 10.0, power / 5.0, power / 2.0, power, power * 2.0];
    fine.into_iter().find(|step| most / step <= 8.0).unwrap_or(power * 5.0)
}

/// The marks, and where the axis ends.
fn marks(most: f64) -> (Vec<f64>, f64) {
    let step = step(most.max(1e-9));
    let count = (most / step).ceil().max(1.0);
    let mut marks = Vec::new();
    while (marks.len() as f64) <= count {
        marks.push(step * marks.len() as f64);
    }
    (marks, step * count)
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, colour: &str, text: &str) {
    writeln!(svg, r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" fill="{colour}">{text}</text>"#)
        .unwrap();
}

fn path(svg: &mut String, points: &[(f64, f64)], colour: &str, dashed: bool) {
    let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let dash = if dashed { r#" stroke-dasharray="6 4""# } else { "" };
    let points = points.join(" ");
    writeln!(svg, r#"<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>"#)
        .unwrap();
}

/// The whole document.
pub(crate) fn svg(title: &str, rounds: usize, panels: &[Panel]) -> String {
    let (left, right, above, below) = MARGIN;
    let height = 30.0 + panels.len() as f64 * (PANEL + above + below);
    let mut svg = String::new();
    writeln!(svg, r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13">"#).unwrap();
    writeln!(svg, r#"<rect width="{WIDTH}" height="{height}" fill="white"/>"#).unwrap();
    text(&mut svg, (left, 24.0), "start", "black", title);
    let (round_marks, last) = marks(rounds as f64);
    let x = |round: f64| left + round / last * (WIDTH - left - right);
    for (position, panel) in panels.iter().enumerate() {
        let top = 30.0 + position as f64 * (PANEL + above + below) + above;
        let values = panel.lines.iter().flat_map(|line| line.values.iter().copied());
        let (value_marks, most) = marks(values.fold(0.0, f64::max));
        let y = |value: f64| top + PANEL - value / most * PANEL;
        text(&mut svg, (left, top - 12.0), "start", "black", &format!("{}, {}", panel.title, panel.unit));
        for value in value_marks {
            path(&mut svg, &[(x(0.0), y(value)), (x(last), y(value))], "#dddddd", false);
            text(&mut svg, (left - 8.0, y(value) + 4.0), "end", "#444444", &format!("{value}"));
        }
        for round in &round_marks {
            text(&mut svg, (x(*round), top + PANEL + 18.0), "middle", "#444444", &format!("{round}"));
        }
        text(&mut svg, (x(last / 2.0), top + PANEL + 36.0), "middle", "#444444", "round");
        let mut labels: Vec<(f64, &Line)> = Vec::new();
        for line in &panel.lines {
            let at = |round: usize| line.values.get(round).or(line.values.last()).copied().unwrap_or(0.0);
            let points: Vec<(f64, f64)> = (0..=rounds).map(|round| (x(round as f64), y(at(round)))).collect();
            path(&mut svg, &points, line.colour, line.dashed);
            labels.push((y(at(rounds)), line));
        }
        // Names beside the ends of their lines, one below the other where these meet.
        labels.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut free = f64::NEG_INFINITY;
        for (at, line) in labels {
            let at = at.max(free);
            free = at + 16.0;
            text(&mut svg, (x(rounds as f64) + 8.0, at + 4.0), "start", line.colour, line.name);
        }
    }
    svg.push_str("</svg>\n");
    svg
}
