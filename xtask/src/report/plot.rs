//! Plots as SVG, readable in black and white: series differ by marker and dash, not by colour.

use std::fmt::Write as _;

/// How a row of points is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// Points alone.
    None,
    /// Joined by a line.
    Solid,
    /// Joined by dashes.
    Dashed,
}

/// A row of points with one name.
pub(crate) struct Series {
    /// Shown in the legend.
    pub(crate) name: String,
    /// Places, in the units of the axes.
    pub(crate) points: Vec<(f64, f64)>,
    /// What joins them.
    pub(crate) line: Line,
}

/// One axis.
pub(crate) struct Axis {
    /// What it shows, with its unit.
    pub(crate) label: String,
    /// Powers of ten at equal distances; values must be above zero then.
    pub(crate) logarithmic: bool,
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 460.0;
const LEFT: f64 = 78.0;
const RIGHT: f64 = 210.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 52.0;
/// Series that can be told apart.
const MARKERS: usize = 8;

/// Maps values to places.
struct Scale {
    logarithmic: bool,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    fn new(axis: &Axis, values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let logarithmic = axis.logarithmic;
        let values = values.filter(|v| v.is_finite() && (!logarithmic || *v > 0.0));
        let (mut low, mut high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| {
            (a.min(v), b.max(v))
        });
        if low > high {
            (low, high) = (1.0, 10.0);
        }
        if logarithmic {
            low /= 1.2;
            high *= 1.2;
        } else {
            let room = if high > low {
                (high - low) * 0.05
            } else {
                low.abs().max(1.0) * 0.5
            };
            // An axis that begins at zero does not go below it for the sake of the margin.
            low = if low >= 0.0 {
                (low - room).max(0.0)
            } else {
                low - room
            };
            high += room;
        }
        Self {
            logarithmic,
            low,
            high,
            from,
            to,
        }
    }

    fn at(&self, v: f64) -> Option<f64> {
        let share = if self.logarithmic {
            if v <= 0.0 {
                return None;
            }
            (v / self.low).ln() / (self.high / self.low).ln()
        } else {
            (v - self.low) / (self.high - self.low)
        };
        let at = self.from + share * (self.to - self.from);
        at.is_finite().then_some(at)
    }

    /// Round values to mark.
    fn ticks(&self) -> Vec<f64> {
        let inside = |v: &f64| (self.low..=self.high).contains(v);
        if self.logarithmic {
            let (a, b) = (self.low.log10().floor(), self.high.log10().ceil());
            let decades = b - a;
            let steps: &[f64] = if decades > 4.0 {
                &[1.0]
            } else {
                &[1.0, 2.0, 5.0]
            };
            let exponents = (0..=decades as i32).map(|i| a as i32 + i);
            let ticks = exponents.flat_map(|e| steps.iter().map(move |s| s * 10f64.powi(e)));
            return ticks.filter(inside).collect();
        }
        let raw = (self.high - self.low) / 6.0;
        let power = 10f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .iter()
            .map(|m| m * power)
            .find(|s| *s >= raw)
            .unwrap_or(raw);
        let first = (self.low / step).ceil() as i64;
        (first..first + 12)
            .map(|i| i as f64 * step)
            .filter(inside)
            .collect()
    }
}

/// A number without the zeros that nobody reads.
fn short(v: f64) -> String {
    if v == 0.0 {
        return "0".to_owned();
    }
    let digits = (2.0 - v.abs().log10().floor()).clamp(0.0, 9.0) as usize;
    let text = format!("{v:.digits$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// The mark of series `which` around a place.
fn marker(which: usize, x: f64, y: f64) -> String {
    let poly = |points: &[(f64, f64)], fill: &str| {
        let points: Vec<String> = points
            .iter()
            .map(|(a, b)| format!("{:.1},{:.1}", x + a, y + b))
            .collect();
        format!(
            "<polygon points=\"{}\" fill=\"{fill}\" stroke=\"black\"/>",
            points.join(" ")
        )
    };
    let triangle = [(0.0, -5.0), (4.6, 3.6), (-4.6, 3.6)];
    let square = [(-4.0, -4.0), (4.0, -4.0), (4.0, 4.0), (-4.0, 4.0)];
    let diamond = [(0.0, -5.5), (5.5, 0.0), (0.0, 5.5), (-5.5, 0.0)];
    match which % MARKERS {
        0 => format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.2\"/>"),
        1 => poly(&square, "white"),
        2 => poly(&triangle, "black"),
        3 => poly(&diamond, "white"),
        4 => format!(
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.2\" fill=\"white\" stroke=\"black\"/>"
        ),
        5 => poly(&square, "black"),
        6 => poly(&triangle, "white"),
        _ => poly(&diamond, "black"),
    }
}

/// One plot. `mark_y` draws a dotted line across, with its name.
pub(crate) fn plot(
    title: &str,
    x: &Axis,
    y: &Axis,
    series: &[Series],
    mark_y: Option<(f64, &str)>,
) -> String {
    let all = || series.iter().flat_map(|s| s.points.iter().copied());
    let marked = mark_y.iter().map(|m| m.0);
    let xs = Scale::new(x, all().map(|p| p.0), LEFT, WIDTH - RIGHT);
    let ys = Scale::new(y, all().map(|p| p.1).chain(marked), HEIGHT - BOTTOM, TOP);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"14\">{}</text>\n",
        escape(title)
    );
    // Writing to a string cannot fail.
    let mut put = |line: String| {
        let _ = writeln!(out, "{line}");
    };
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    put(format!(
        "<rect x=\"{LEFT}\" y=\"{TOP}\" width=\"{}\" height=\"{}\" fill=\"none\" stroke=\"black\"/>",
        right - LEFT,
        bottom - TOP
    ));
    for v in xs.ticks() {
        if let Some(at) = xs.at(v) {
            put(format!(
                "<path d=\"M{at:.1} {TOP}V{bottom}\" stroke=\"#ddd\"/><text x=\"{at:.1}\" y=\"{}\" \
                 text-anchor=\"middle\">{}</text>",
                bottom + 17.0,
                short(v)
            ));
        }
    }
    for v in ys.ticks() {
        if let Some(at) = ys.at(v) {
            put(format!(
                "<path d=\"M{LEFT} {at:.1}H{right}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" \
                 text-anchor=\"end\">{}</text>",
                LEFT - 6.0,
                at + 4.0,
                short(v)
            ));
        }
    }
    put(format!(
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
        f64::midpoint(LEFT, right),
        HEIGHT - 12.0,
        escape(&x.label)
    ));
    put(format!(
        "<text transform=\"translate(18 {}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        f64::midpoint(TOP, bottom),
        escape(&y.label)
    ));
    if let Some((v, name)) = mark_y
        && let Some(at) = ys.at(v)
    {
        put(format!(
            "<path d=\"M{LEFT} {at:.1}H{right}\" stroke=\"black\" stroke-dasharray=\"2 3\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            right - 4.0,
            at - 4.0,
            escape(name)
        ));
    }
    for (i, s) in series.iter().enumerate() {
        let places: Vec<(f64, f64)> = s
            .points
            .iter()
            .filter_map(|&(a, b)| Some((xs.at(a)?, ys.at(b)?)))
            .collect();
        if s.line != Line::None && places.len() > 1 {
            let path: Vec<String> = places
                .iter()
                .map(|(a, b)| format!("{a:.1},{b:.1}"))
                .collect();
            let dash = if s.line == Line::Dashed {
                " stroke-dasharray=\"6 4\""
            } else {
                ""
            };
            put(format!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"black\"{dash}/>",
                path.join(" ")
            ));
        }
        for (a, b) in places {
            put(marker(i, a, b));
        }
        let at = TOP + 12.0 + 19.0 * i as f64;
        put(marker(i, right + 18.0, at - 4.0));
        put(format!(
            "<text x=\"{}\" y=\"{at}\">{}</text>",
            right + 32.0,
            escape(&s.name)
        ));
    }
    out + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(logarithmic: bool) -> Axis {
        Axis {
            label: "a < b".into(),
            logarithmic,
        }
    }

    #[test]
    fn points_lie_inside_and_in_order() {
        for logarithmic in [false, true] {
            let s = Scale::new(&axis(logarithmic), [1.0, 1000.0].into_iter(), 10.0, 110.0);
            let at: Vec<f64> = [1.0, 30.0, 1000.0]
                .iter()
                .map(|v| s.at(*v).unwrap())
                .collect();
            assert!(10.0 <= at[0] && at[0] < at[1] && at[1] < at[2] && at[2] <= 110.0);
            assert!((3..12).contains(&s.ticks().len()), "{:?}", s.ticks());
        }
        assert_eq!(
            Scale::new(&axis(true), [1.0].into_iter(), 0.0, 1.0).at(0.0),
            None
        );
    }

    #[test]
    fn odd_figures_leave_a_whole_picture() {
        let series = [Series {
            name: "x & y".into(),
            points: vec![
                (f64::NAN, 1.0),
                (2.0, 0.0),
                (3.0, f64::INFINITY),
                (4.0, 5.0),
            ],
            line: Line::Solid,
        }];
        let text = plot(
            "t",
            &axis(false),
            &axis(true),
            &series,
            Some((3.0, "bound")),
        );
        assert!(text.starts_with("<svg") && text.ends_with("</svg>\n"));
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
        for part in ["x &amp; y", "a &lt; b", "bound", "<circle"] {
            assert!(text.contains(part), "{part}");
        }
        let none = plot("t", &axis(true), &axis(true), &[], None);
        assert!(none.ends_with("</svg>\n"));
    }

    #[test]
    fn numbers_are_short() {
        let all = [0.0, 0.0027, 0.5, 20.0, 1152.0, 310.25];
        let text: Vec<String> = all.iter().map(|v| short(*v)).collect();
        assert_eq!(text, ["0", "0.0027", "0.5", "20", "1152", "310"]);
    }
}
