//! Line charts as inline SVG. Comes in: curves of points. Goes out: text that stands in a page, drawn in the page's own
//! colours (classes `series-0`, `series-1`, …). It loads nothing and runs nothing.

use std::fmt::Write;

use chunkwise::explain::linear_text::escape;

/// One line.
pub struct Curve {
    /// What stands at its end.
    pub label: String,
    /// Points, from left to right.
    pub points: Vec<(f64, f64)>,
}

/// A chart.
pub struct Chart {
    /// What is read out for it.
    pub title: String,
    /// What the horizontal axis counts.
    pub across: String,
    /// What the vertical axis measures.
    pub up: String,
    /// Faint lines behind, one a curve, without labels.
    pub behind: Vec<Vec<(f64, f64)>>,
    /// The lines.
    pub curves: Vec<Curve>,
    /// Lowest and highest value shown; chosen from the curves if absent.
    pub range: Option<(f64, f64)>,
    /// Whether values are shares, shown as percentages.
    pub shares: bool,
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 340.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 42.0;
/// Labels at the ends of lines are at least this far from each other.
const LABEL: f64 = 34.0;

impl Chart {
    /// The chart as an `svg` element.
    pub fn draw(&self) -> String {
        let points = || self.curves.iter().flat_map(|curve| &curve.points);
        let last = points().map(|(x, _)| *x).fold(1.0, f64::max);
        let lowest = points().map(|(_, y)| *y).fold(f64::INFINITY, f64::min);
        let highest = points().map(|(_, y)| *y).fold(f64::NEG_INFINITY, f64::max);
        let (lo, hi) = self.range.unwrap_or((lowest, highest));
        let step = round_step((hi - lo) / 5.0);
        let (lo, hi) = ((lo / step).floor() * step, (hi / step).ceil() * step);
        let x = |value: f64| LEFT + (WIDTH - LEFT - RIGHT) * value / last;
        let y = |value: f64| HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value.clamp(lo, hi) - lo) / (hi - lo);
        let mut svg = String::new();
        let mut add = |text: std::fmt::Arguments| {
            svg.write_fmt(text).expect("a String takes whatever is written");
        };
        add(format_args!(r#"<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{}">"#, escape(&self.title)));
        let lines = ((hi - lo) / step).round() as usize;
        for number in 0..=lines {
            let value = lo + step * number as f64;
            let at = y(value);
            add(format_args!(
                r#"<line class="grid" x1="{LEFT}" x2="{:.1}" y1="{at:.1}" y2="{at:.1}"/>"#,
                WIDTH - RIGHT
            ));
            add(format_args!(
                r#"<text class="tick" x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
                LEFT - 8.0,
                at + 4.0,
                self.value(value)
            ));
        }
        // Steps are whole.
        let across = round_step(last / 5.0).max(1.0);
        for number in 0..=(last / across) as usize {
            let value = across * number as f64;
            add(format_args!(
                r#"<text class="tick" x="{:.1}" y="{:.1}" text-anchor="middle">{value}</text>"#,
                x(value),
                HEIGHT - BOTTOM + 18.0
            ));
        }
        add(format_args!(r#"<text class="axis" x="{LEFT}" y="{:.1}">{}</text>"#, TOP - 14.0, escape(&self.up)));
        add(format_args!(
            r#"<text class="axis" x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
            WIDTH - RIGHT,
            HEIGHT - 6.0,
            escape(&self.across)
        ));
        let path = |points: &[(f64, f64)]| {
            let places = points.iter().map(|(across, up)| format!("{:.1},{:.1}", x(*across), y(*up)));
            places.collect::<Vec<_>>().join(" ")
        };
        for (number, points) in self.behind.iter().enumerate() {
            add(format_args!(r#"<polyline class="behind series-{number}" points="{}"/>"#, path(points)));
        }
        let ends: Vec<f64> = self.curves.iter().map(|it| it.points.last().map_or(lo, |(_, up)| *up)).collect();
        let places = apart(&ends.iter().map(|end| y(*end)).collect::<Vec<_>>());
        for (number, curve) in self.curves.iter().enumerate() {
            add(format_args!(r#"<polyline class="line series-{number}" points="{}"/>"#, path(&curve.points)));
            for (across, up) in &curve.points {
                add(format_args!(
                    r#"<circle class="dot series-{number}" cx="{:.1}" cy="{:.1}" r="2.4"><title>{}, step {across}: {}</title></circle>"#,
                    x(*across),
                    y(*up),
                    escape(&curve.label),
                    self.value_exactly(*up)
                ));
            }
            let (at, left) = (places[number], WIDTH - RIGHT + 10.0);
            add(format_args!(
                r#"<text class="label series-{number}" x="{left}" y="{:.1}">{}</text>"#,
                at,
                escape(&curve.label)
            ));
            add(format_args!(
                r#"<text class="end" x="{left}" y="{:.1}">{}</text>"#,
                at + 15.0,
                self.value_exactly(ends[number])
            ));
        }
        svg.push_str("</svg>");
        svg
    }

    fn value(&self, value: f64) -> String {
        if self.shares { format!("{:.0} %", value * 100.0) } else { format!("{value:.1}") }
    }

    fn value_exactly(&self, value: f64) -> String {
        if self.shares { format!("{:.1} %", value * 100.0) } else { format!("{value:.3}") }
    }
}

/// The nearest of 1, 2, 5 times a power of ten that is not smaller.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.max(1e-9).log10().floor());
    let leading = step / power;
    power * [1.0, 2.0, 5.0, 10.0].into_iter().find(|it| leading <= *it + 1e-9).unwrap_or(10.0)
}

/// Moves labels apart that would lie on each other.
fn apart(places: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..places.len()).collect();
    order.sort_by(|a, b| places[*a].total_cmp(&places[*b]));
    let mut moved = places.to_vec();
    for pair in order.windows(2) {
        let overlap = moved[pair[0]] + LABEL - moved[pair[1]];
        if overlap > 0.0 {
            moved[pair[0]] -= overlap / 2.0;
            moved[pair[1]] += overlap / 2.0;
        }
    }
    moved
}
