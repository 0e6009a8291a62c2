//! Charts as SVG, drawn here: a page, and a picture beside Markdown, must need nothing but themselves.
//!
//! Colours are those of Okabe and Ito, which the colour-blind can tell apart (<https://jfly.uni-koeln.de/color/>), lighter
//! on a dark page; lines differ by their dashes too.

use maud::{Markup, PreEscaped, html};

use crate::report::Spread;
use crate::series::{Chart, Series};

/// What `across` says in charts of latency: positions are 1 ÷ (1 − p), and both axes are logarithmic.
pub(crate) const PERCENTILE: &str = "percentile";

/// For a page that shows charts; pictures have it inside.
pub(crate) const STYLE: &str = "\
.chart{font:13px system-ui,sans-serif;fill:#1f2328}\
.chart .paper{fill:#fff}.chart .head{font-size:15px;font-weight:600}.chart .soft{fill:#59636e}\
.chart .grid{stroke:#d1d9e0}.chart .axis,.chart .whisker{stroke:#59636e}.chart .one{stroke:#59636e;stroke-dasharray:6 4}\
.chart .line{fill:none;stroke-width:2;stroke-linejoin:round}.chart .bar{fill:#0072b2;fill-opacity:.75}.chart .over{paint-order:stroke;stroke:#fff;stroke-width:4px}\
.chart .l0{stroke:#0072b2}.chart .l1{stroke:#d55e00;stroke-dasharray:8 4}.chart .l2{stroke:#009e73;stroke-dasharray:2 3}\
.chart .l3{stroke:#cc79a7;stroke-dasharray:10 3 2 3}.chart .l4{stroke:#e69f00;stroke-dasharray:14 4}\
.chart .l5{stroke:#56b4e9;stroke-dasharray:5 2}.chart .dot{stroke-dasharray:none;fill:#fff}\
@media screen and (prefers-color-scheme:dark){\
.chart{fill:#e6edf3}.chart .paper,.chart .dot{fill:#0d1117}.chart .soft{fill:#9198a1}.chart .grid{stroke:#30363d}\
.chart .axis,.chart .one,.chart .whisker{stroke:#9198a1}.chart .bar{fill:#56b4e9}.chart .over{stroke:#0d1117}\
.chart .l0{stroke:#56b4e9}.chart .l1{stroke:#ff9b57}.chart .l2{stroke:#2fd6a3}.chart .l3{stroke:#e6a3c8}\
.chart .l4{stroke:#f0e442}.chart .l5{stroke:#8fa8ff}}";
/// How many lines look different; the next look like the first.
const LOOKS: usize = 6;

const WIDTH: f64 = 760.0;
/// Of the plot of a line chart.
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 36.0;
/// Room for one character, for what must not overlap.
const CHARACTER: f64 = 7.2;

/// Where it will be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a page that has [`STYLE`].
    Page,
    /// As a file.
    File,
}

/// One axis.
struct Scale {
    logarithmic: bool,
    /// The values at both ends.
    low: f64,
    high: f64,
    /// The pixels there.
    start: f64,
    end: f64,
    ticks: Vec<(f64, String)>,
}

impl Scale {
    /// From zero, or below it if need be, to what is rounder than the largest value.
    fn linear(values: impl Iterator<Item = f64>, start: f64, end: f64) -> Self {
        let (low, high) = values.fold((0.0, 0.0), |(low, high): (f64, f64), value| (low.min(value), high.max(value)));
        let high = if high > low { high } else { low + 1.0 };
        let rough = (high - low) / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step =
            [1.0, 2.0, 2.5, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= rough * 0.99);
        let step = step.unwrap_or(rough);
        let (first, last) = ((low / step).floor(), (high / step - 1e-9).ceil());
        let ticks =
            (0..20).map(|tick| (first + f64::from(tick)) * step).take_while(|value| *value <= (last + 0.5) * step);
        let ticks = ticks.map(|value| (value, number(value))).collect();
        Self { logarithmic: false, low: first * step, high: last * step, start, end, ticks }
    }

    /// Between such of 1, 2, 5, 10, … as hold all values.
    fn logarithmic(values: impl Iterator<Item = f64>, start: f64, end: f64) -> Self {
        let positive = values.filter(|value| *value > 0.0);
        let (low, high) =
            positive.fold((f64::MAX, 0.0), |(low, high): (f64, f64), value| (low.min(value), high.max(value)));
        let (low, high) = if high > 0.0 { (low, high) } else { (1.0, 10.0) };
        let round = |decade: i32| [1.0, 2.0, 5.0].map(|factor| factor * 10f64.powi(decade));
        let all: Vec<f64> = (-9..12).flat_map(round).collect();
        let low = all.iter().copied().rfind(|value| *value <= low * 1.001).unwrap_or(1e-9);
        let high = all.iter().copied().find(|value| *value >= high * 0.999 && *value > low).unwrap_or(1e12);
        let within: Vec<f64> = all.into_iter().filter(|value| (low..=high).contains(value)).collect();
        let whole = |value: &f64| (value.log10() - value.log10().round()).abs() < 1e-6;
        let few = within.len() <= 8;
        let ticks =
            within.into_iter().filter(|value| few || whole(value)).map(|value| (value, number(value))).collect();
        Self { logarithmic: true, low, high, start, end, ticks }
    }

    /// Of 1 ÷ (1 − p), from the median on.
    fn percentiles(values: impl Iterator<Item = f64>, start: f64, end: f64) -> Self {
        let high = values.fold(10.0, f64::max);
        let named = [(2.0, "50 %"), (4.0, "75 %"), (10.0, "90 %"), (100.0, "99 %"), (1e3, "99.9 %"), (1e4, "99.99 %")];
        let ticks = named.into_iter().filter(|(value, _)| *value <= high * 1.001);
        let ticks = ticks.map(|(value, name)| (value, name.to_owned())).collect();
        Self { logarithmic: true, low: 2.0, high, start, end, ticks }
    }

    /// The pixel of a value.
    fn at(&self, value: f64) -> f64 {
        let place = |value: f64| if self.logarithmic { value.max(self.low).log10() } else { value };
        let share = (place(value) - place(self.low)) / (place(self.high) - place(self.low)).max(1e-12);
        self.start + share * (self.end - self.start)
    }
}

/// A number as short as an axis wants it.
fn number(value: f64) -> String {
    let (value, unit) = match value.abs() {
        1e9.. => (value / 1e9, " G"),
        1e6.. => (value / 1e6, " M"),
        1e4.. => (value / 1e3, " k"),
        _ => (value, ""),
    };
    let digits = if value.abs() < 0.01 { 6 } else { 3 };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    let text = if text == "-0" { "0" } else { text };
    format!("{}{unit}", text.replace('-', "−"))
}

/// A coordinate.
fn px(value: f64) -> String {
    format!("{value:.1}")
}

/// Draws lines over an axis.
pub(crate) fn lines(chart: &Chart, place: Place) -> Markup {
    let legend = legend(&chart.lines);
    let rows = legend.last().map_or(0.0, |(_, row)| row + 1.0);
    let top = 42.0 + 20.0 * rows;
    let bottom = top + HEIGHT;
    let points = || chart.lines.iter().flat_map(|line| &line.points);
    let (across, up) = (points().map(|point| point.0), points().map(|point| point.1));
    let (x, y) = if chart.across == PERCENTILE {
        (Scale::percentiles(across, LEFT, WIDTH - RIGHT), Scale::logarithmic(up, bottom, top))
    } else {
        (Scale::linear(across, LEFT, WIDTH - RIGHT), Scale::linear(up, bottom, top))
    };
    let few = chart.lines.iter().all(|line| line.points.len() <= 16);
    let unit = chart.lines.first().map_or("", |line| line.unit);
    let content = html! {
        @for (value, name) in &y.ticks {
            line.grid x1=(px(LEFT)) x2=(px(WIDTH - RIGHT)) y1=(px(y.at(*value))) y2=(px(y.at(*value))) {}
            text.soft x=(px(LEFT - 8.0)) y=(px(y.at(*value) + 4.5)) text-anchor="end" { (name) }
        }
        @for (value, name) in &x.ticks {
            line.grid x1=(px(x.at(*value))) x2=(px(x.at(*value))) y1=(px(top)) y2=(px(bottom)) {}
            text.soft x=(px(x.at(*value))) y=(px(bottom + 18.0)) text-anchor="middle" { (name) }
        }
        line.axis x1=(px(LEFT)) x2=(px(WIDTH - RIGHT)) y1=(px(bottom)) y2=(px(bottom)) {}
        text.soft x=(px(f64::midpoint(LEFT, WIDTH - RIGHT))) y=(px(bottom + 38.0)) text-anchor="middle" { (chart.across) }
        text.soft transform=(format!("translate(16 {}) rotate(-90)", px(f64::midpoint(top, bottom)))) text-anchor="middle" {
            (unit)
        }
        @for (index, (line, (left, row))) in chart.lines.iter().zip(&legend).enumerate() {
            (stroke(line, index % LOOKS, &x, &y, few))
            @let middle = 46.0 + 20.0 * row;
            line.line.(format!("l{}", index % LOOKS)) x1=(px(*left)) x2=(px(left + 34.0)) y1=(px(middle)) y2=(px(middle)) {}
            text x=(px(left + 42.0)) y=(px(middle + 4.5)) { (line.name) }
        }
    };
    let words = chart.lines.iter().map(|line| {
        let values = || line.points.iter().map(|point| point.1);
        let (low, high) = (values().fold(f64::MAX, f64::min), values().fold(f64::MIN, f64::max));
        if line.points.is_empty() {
            return format!("{}: nothing", line.name);
        }
        format!("{}: from {} to {} {}", line.name, number(low), number(high), line.unit)
    });
    let description = format!("Over {}. {}.", chart.across, words.collect::<Vec<_>>().join("; "));
    frame(&chart.title, &description, bottom + 50.0, place, &content)
}

/// Where the entry of each line begins, and in which row.
fn legend(lines: &[Series]) -> Vec<(f64, f64)> {
    let (mut left, mut row) = (LEFT, 0.0);
    let place = |line: &Series| {
        let width = 42.0 + CHARACTER * line.name.chars().count() as f64;
        if left > LEFT && left + width > WIDTH - RIGHT {
            (left, row) = (LEFT, row + 1.0);
        }
        let here = (left, row);
        left += width + 24.0;
        here
    };
    lines.iter().map(place).collect()
}

/// The line itself, with its `dots` or without.
fn stroke(line: &Series, look: usize, x: &Scale, y: &Scale, dots: bool) -> Markup {
    let points: Vec<(f64, f64)> = line.points.iter().map(|(across, up)| (x.at(*across), y.at(*up))).collect();
    let path: Vec<String> = points.iter().map(|(across, up)| format!("{across:.1},{up:.1}")).collect();
    html! {
        polyline.line.(format!("l{look}")) points=(path.join(" ")) {}
        @if dots {
            @for (across, up) in &points {
                circle.line.dot.(format!("l{look}")) cx=(px(*across)) cy=(px(*up)) r="3" {}
            }
        }
    }
}

/// Draws a bar for each label, with its range, beside the line at 1.
pub(crate) fn ratios(title: &str, bars: &[(String, Spread)], place: Place) -> Markup {
    const ROW: f64 = 24.0;
    let longest = bars.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0);
    let left = (16.0 + CHARACTER * longest as f64).clamp(120.0, WIDTH * 0.55);
    let (top, bottom) = (46.0, 50.0 + ROW * bars.len() as f64);
    // the figures are written behind the bars
    let x = Scale::linear(bars.iter().map(|(_, ratio)| ratio.max).chain([1.0]), left, WIDTH - 120.0);
    let content = html! {
        @for (value, name) in &x.ticks {
            line.grid x1=(px(x.at(*value))) x2=(px(x.at(*value))) y1=(px(top)) y2=(px(bottom)) {}
            text.soft x=(px(x.at(*value))) y=(px(bottom + 18.0)) text-anchor="middle" { (name) }
        }
        line.one x1=(px(x.at(1.0))) x2=(px(x.at(1.0))) y1=(px(top)) y2=(px(bottom)) stroke-width="2" {}
        @for (row, (label, ratio)) in bars.iter().enumerate() {
            @let middle = top + ROW * (row as f64 + 0.5);
            text x=(px(left - 10.0)) y=(px(middle + 4.5)) text-anchor="end" { (label) }
            rect.bar x=(px(left)) y=(px(middle - 8.0)) width=(px(x.at(ratio.median) - left)) height="16" {}
            line.whisker x1=(px(x.at(ratio.min))) x2=(px(x.at(ratio.max))) y1=(px(middle)) y2=(px(middle)) stroke-width="2" {}
            text.over x=(px(x.at(ratio.max) + 10.0)) y=(px(middle + 4.5)) { (ratio.words(2)) }
        }
        text.soft x=(px(f64::midpoint(left, WIDTH - 120.0))) y=(px(bottom + 38.0)) text-anchor="middle" { "times the floor" }
    };
    let words: Vec<String> = bars.iter().map(|(label, ratio)| format!("{label}: {}", ratio.words(2))).collect();
    frame(title, &words.join("; "), bottom + 50.0, place, &content)
}

fn frame(title: &str, description: &str, height: f64, place: Place, content: &Markup) -> Markup {
    let size = format!("0 0 {WIDTH} {height}");
    html! {
        svg.chart xmlns=[(place == Place::File).then_some("http://www.w3.org/2000/svg")] viewBox=(size) role="img" {
            title { (title) }
            desc { (description) }
            @if place == Place::File {
                style { (PreEscaped(STYLE)) }
            }
            rect.paper width=(WIDTH) height=(height) {}
            text.head x="16" y="26" { (title) }
            (content)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(across: &'static str, points: &[(f64, f64)]) -> Chart {
        let line = |name: &str| Series { name: name.to_owned(), unit: "ms", points: points.to_vec() };
        Chart { title: "a < b & c".to_owned(), across, lines: vec![line("<one>"), line("two")] }
    }

    fn names(scale: &Scale) -> Vec<&str> {
        scale.ticks.iter().map(|(_, name)| &**name).collect()
    }

    #[test]
    fn axes_have_round_numbers() {
        let linear = |values: &[f64]| Scale::linear(values.iter().copied(), 0.0, 100.0);
        assert_eq!(names(&linear(&[3.0, 97.0])), ["0", "20", "40", "60", "80", "100"]);
        assert_eq!(names(&linear(&[230_000.0])), ["0", "50 k", "100 k", "150 k", "200 k", "250 k"]);
        assert_eq!(names(&linear(&[-1.0, 3.0])), ["−1", "0", "1", "2", "3"]);
        assert_eq!(names(&linear(&[])).first(), Some(&"0"));
        let logarithmic = |values: &[f64]| Scale::logarithmic(values.iter().copied(), 100.0, 0.0);
        assert_eq!(names(&logarithmic(&[0.3, 4.0])), ["0.2", "0.5", "1", "2", "5"]);
        assert_eq!(names(&logarithmic(&[0.03, 4000.0])), ["0.1", "1", "10", "100", "1000"]);
        let percentiles = Scale::percentiles([2.0, 1000.0].into_iter(), 0.0, 100.0);
        assert_eq!(names(&percentiles), ["50 %", "75 %", "90 %", "99 %", "99.9 %"]);
    }

    #[test]
    fn values_are_drawn_in_proportion() {
        let linear = Scale::linear([100.0].into_iter(), 10.0, 20.0);
        assert!((linear.at(50.0) - 15.0).abs() < 1e-9);
        let logarithmic = Scale::logarithmic([1.0, 100.0].into_iter(), 20.0, 0.0);
        assert!((logarithmic.at(10.0) - 10.0).abs() < 1e-9);
        assert!((logarithmic.at(0.0) - 20.0).abs() < 1e-9, "what is below the axis is drawn at its end");
    }

    #[test]
    fn a_picture_is_a_document_of_its_own_whatever_the_names_and_values() {
        for points in [&[][..], &[(0.0, 0.0)], &[(2.0, 0.1), (900.0, 1e300), (1e4, -3.0)]] {
            for across in ["seconds", PERCENTILE] {
                let svg = lines(&chart(across, points), Place::File).into_string();
                let document = roxmltree::Document::parse(&svg).unwrap();
                let text =
                    |name| document.descendants().find(|node| node.has_tag_name(("http://www.w3.org/2000/svg", name)));
                assert_eq!(text("title").unwrap().text(), Some("a < b & c"));
                assert!(text("desc").unwrap().text().unwrap().contains("<one>: "), "{svg}");
                assert_eq!(svg.matches("<polyline").count(), 2);
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            }
        }
    }

    #[test]
    fn bars_tell_their_ratios() {
        let bar = |label: &str, values: [f64; 2]| (label.to_owned(), Spread::of(values.into_iter()).unwrap());
        let svg = ratios("CPU", &[bar("one <&", [1.0, 2.0]), bar("two", [0.1, 0.3])], Place::File).into_string();
        let document = roxmltree::Document::parse(&svg).unwrap();
        let texts: Vec<&str> = document.descendants().filter_map(|node| node.text()).collect();
        assert!(
            texts.contains(&"one <&") && texts.contains(&"1.50 (1.00–2.00)") && texts.contains(&"0.20 (0.10–0.30)")
        );
    }
}
