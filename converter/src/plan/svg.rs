//! The answer as a drawing: memory by cut, time by cut, and what can be chosen. Parts are told
//! apart by pattern, not by colour, so that it reads in black and white.

use std::fmt::Write as _;

use formats::units::Size;

use super::Planned;
use super::answer::ByCut;
use super::text::ms;

const WIDTH: f64 = 900.0;
const LEFT: f64 = 90.0;
const PLOT: f64 = WIDTH - LEFT - 30.0;
const TALL: f64 = 170.0;
/// From the top of one panel to that of the next.
const STEP: f64 = 270.0;
/// Patterns of parts, in order.
const FILLS: [&str; 4] = ["#222", "url(#hatch)", "url(#dots)", "#fff"];

/// A drawing in the making.
struct Sheet(String);

impl Sheet {
    /// Writing to a string cannot fail.
    fn add(&mut self, text: std::fmt::Arguments<'_>) {
        let _ = self.0.write_fmt(text);
        self.0.push('\n');
    }

    fn text(&mut self, x: f64, y: f64, anchor: &str, text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        self.add(format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
        ));
    }

    fn bar(&mut self, x: f64, y: f64, w: f64, h: f64, fill: &str) {
        self.add(format_args!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{:.1}\" fill=\"{fill}\" stroke=\"#000\" stroke-width=\"0.5\"/>",
            h.max(0.0)
        ));
    }

    fn line(&mut self, x0: f64, y0: f64, x1: f64, y1: f64, style: &str) {
        self.add(format_args!(
            "<line x1=\"{x0:.1}\" y1=\"{y0:.1}\" x2=\"{x1:.1}\" y2=\"{y1:.1}\" stroke=\"#000\" {style}/>"
        ));
    }
}

/// A panel of stacked bars.
struct Stack<'a> {
    title: &'a str,
    parts: &'a [&'a str],
    values: Vec<Vec<f64>>,
    limit: Option<f64>,
    label: fn(f64) -> String,
}

fn size(v: f64) -> String {
    Size(v as u64).to_string()
}

/// The whole drawing.
pub(super) fn draw(planned: &Planned) -> String {
    let a = &planned.answer;
    let limits = &planned.problem.limits;
    let height = 4.0 * STEP + 40.0;
    let mut sheet = Sheet(String::new());
    sheet.add(format_args!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">"
    ));
    sheet.add(format_args!(
        "<defs><pattern id=\"hatch\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\"><rect width=\"6\" height=\"6\" fill=\"#fff\"/><path d=\"M0 6L6 0\" stroke=\"#000\"/></pattern><pattern id=\"dots\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\"><rect width=\"6\" height=\"6\" fill=\"#fff\"/><circle cx=\"3\" cy=\"3\" r=\"1.2\"/></pattern></defs>"
    ));
    sheet.bar(0.0, 0.0, WIDTH, height, "#fff");
    let bytes = |of: fn(&ByCut) -> [u64; 3]| -> Vec<Vec<f64>> {
        let cuts = a.by_cut.iter();
        cuts.map(|c| of(c).iter().map(|b| *b as f64).collect())
            .collect()
    };
    let held = ["file", "KV cache", "other"];
    let panels = [
        Stack {
            title: "memory of the edge by cut",
            parts: &held,
            values: bytes(|c| c.edge_bytes),
            limit: Some(limits.edge_bytes as f64),
            label: size,
        },
        Stack {
            title: "memory of the cloud by cut",
            parts: &held,
            values: bytes(|c| c.cloud_bytes),
            limit: Some(limits.cloud_bytes as f64),
            label: size,
        },
        Stack {
            title: "time of a token by cut",
            parts: &["edge", "codec", "link", "cloud"],
            values: a.by_cut.iter().map(|c| c.token_ms.to_vec()).collect(),
            limit: limits.deadline_ms,
            label: ms,
        },
    ];
    let best = a.best.as_ref().map(|b| b.split);
    for (i, panel) in panels.iter().enumerate() {
        stack(&mut sheet, panel, 50.0 + i as f64 * STEP, &a.by_cut, best);
    }
    front(&mut sheet, planned, 50.0 + 3.0 * STEP);
    sheet.0.push_str("</svg>\n");
    sheet.0
}

fn axes(sheet: &mut Sheet, title: &str, top: f64, most: f64, label: fn(f64) -> String) {
    sheet.text(LEFT, top - 22.0, "start", title);
    sheet.line(LEFT, top, LEFT, top + TALL, "");
    sheet.line(LEFT, top + TALL, LEFT + PLOT, top + TALL, "");
    for quarter in 0..=4 {
        let part = f64::from(quarter) / 4.0;
        let y = top + TALL * (1.0 - part);
        sheet.line(LEFT - 4.0, y, LEFT, y, "");
        sheet.text(LEFT - 8.0, y + 4.0, "end", &label(most * part));
    }
}

fn stack(sheet: &mut Sheet, s: &Stack<'_>, top: f64, cuts: &[ByCut], best: Option<u32>) {
    let totals = s.values.iter().map(|v| v.iter().sum::<f64>());
    let largest = totals.fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    // A limit far above everything would flatten the bars.
    let shown = s.limit.filter(|l| *l <= 2.0 * largest);
    let most = 1.05 * largest.max(shown.unwrap_or(0.0));
    axes(sheet, s.title, top, most, s.label);
    let mut x = LEFT + PLOT;
    for (part, fill) in s.parts.iter().zip(FILLS).rev() {
        x -= 90.0;
        sheet.bar(x, top - 32.0, 12.0, 12.0, fill);
        sheet.text(x + 17.0, top - 22.0, "start", part);
    }
    let each = PLOT / s.values.len().max(1) as f64;
    for (i, (values, cut)) in s.values.iter().zip(cuts).enumerate() {
        let x = LEFT + each * i as f64;
        let mut y = top + TALL;
        for (v, fill) in values.iter().zip(FILLS) {
            let h = TALL * v / most;
            y -= h;
            sheet.bar(x + each * 0.15, y, each * 0.7, h, fill);
        }
        let middle = x + each / 2.0;
        let marked = best == Some(cut.split);
        if marked || s.values.len() <= 24 || cut.split % 5 == 0 {
            let mark = if marked {
                format!("▲{}", cut.split)
            } else {
                cut.split.to_string()
            };
            sheet.text(middle, top + TALL + 15.0, "middle", &mark);
        }
        if !cut.fits {
            sheet.text(middle, top + TALL + 29.0, "middle", "×");
        }
    }
    if let Some(limit) = shown {
        let y = top + TALL * (1.0 - limit / most);
        sheet.line(LEFT, y, LEFT + PLOT, y, "stroke-dasharray=\"6 4\"");
        sheet.text(
            LEFT + PLOT,
            y - 4.0,
            "end",
            &format!("limit {}", (s.label)(limit)),
        );
    }
    sheet.text(
        LEFT,
        top + TALL + 45.0,
        "start",
        "layers on the edge; ▲ the best, × outside of a limit",
    );
}

/// Time against divergence of the choices that nothing beats.
fn front(sheet: &mut Sheet, planned: &Planned, top: f64) {
    let rows = &planned.answer.pareto;
    let most = |of: fn(&super::answer::Row) -> f64| {
        1.05 * rows.iter().map(of).fold(f64::MIN_POSITIVE, f64::max)
    };
    let (most_kl, most_ms) = (most(|r| r.kl), most(|r| r.token_ms));
    let label = |v: f64| format!("{v:.3}");
    axes(
        sheet,
        "what nothing beats: divergence (nats per token) against time of a token",
        top,
        most_kl,
        label,
    );
    for r in rows {
        let x = LEFT + PLOT * r.token_ms / most_ms;
        let y = top + TALL * (1.0 - r.kl / most_kl);
        let best = planned.answer.best.as_ref() == Some(r);
        let fill = if best { "#000" } else { "#fff" };
        sheet.add(format_args!(
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\" fill=\"{fill}\" stroke=\"#000\"><title>split {}, {} and {} bits, {}</title></circle>",
            r.split, r.edge_bits, r.cloud_bits, r.codec
        ));
        if best {
            sheet.text(
                x + 8.0,
                y - 6.0,
                "start",
                &format!("split {}, {}", r.split, ms(r.token_ms)),
            );
        }
    }
    for quarter in 0..=4 {
        let part = f64::from(quarter) / 4.0;
        sheet.text(
            LEFT + PLOT * part,
            top + TALL + 15.0,
            "middle",
            &ms(most_ms * part),
        );
    }
}
