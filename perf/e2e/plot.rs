//! Plots as SVG: a bar a peer, and a line a distribution.

use std::fmt::Write as _;

use crate::report::{Distribution, Row, Spread, number};

const WIDTH: f64 = 860.0;
const LABELS: f64 = 350.0;
const BAR: f64 = 26.0;
const TOP: f64 = 40.0;
const COLOURS: [&str; 6] = ["#2a6fb0", "#c8553d", "#5a8f3c", "#8a5ea8", "#b58900", "#4c4c4c"];

fn head(height: f64, title: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"22\" font-size=\"15\">{}</text>\n",
        escape(title)
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Medians as bars, least and most as a line over each; percentages have another scale and are left out. None with fewer than two to compare.
pub fn bars(row: &Row) -> Option<String> {
    let spreads: Vec<_> = row
        .series
        .iter()
        .filter(|series| !series.peer.ends_with('%'))
        .filter_map(|series| Some((&series.peer, Spread::of(&series.values)?)))
        .collect();
    let largest = spreads.iter().map(|(_, s)| s.max).fold(0.0, f64::max);
    if spreads.len() < 2 || largest <= 0.0 {
        return None;
    }
    let scale = (WIDTH - LABELS - 90.0) / largest;
    let mut svg = head(
        TOP + BAR * spreads.len() as f64 + 10.0,
        &format!("{} ({})", row.title, row.unit),
    );
    for (n, (peer, s)) in spreads.iter().enumerate() {
        let y = TOP + BAR * n as f64;
        let colour = if peer.starts_with("uvs") { COLOURS[0] } else { "#a9b4c0" };
        let middle = y + BAR / 2.0;
        let x = |value: f64| LABELS + value * scale;
        // Writing to a String does not fail.
        let _ = writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{LABELS}\" y=\"{:.0}\" width=\"{:.1}\" height=\"{:.0}\" fill=\"{colour}\"/>\
             <line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle:.0}\" y2=\"{middle:.0}\" stroke=\"black\"/>\
             <text x=\"{:.1}\" y=\"{:.0}\">{}</text>",
            LABELS - 8.0,
            middle + 4.0,
            escape(peer),
            y + 4.0,
            s.median.max(0.0) * scale,
            BAR - 8.0,
            x(s.min.max(0.0)),
            x(s.max),
            x(s.max) + 8.0,
            middle + 4.0,
            number(s.median)
        );
    }
    Some(svg + "</svg>\n")
}

/// Percentiles to the right, in nines; values upwards, as a logarithm.
pub fn distributions(row: &Row) -> Option<String> {
    let all: Vec<_> = row.distributions.iter().map(Distribution::percentiles).collect();
    let values = || all.iter().flatten().map(|(_, value)| value.max(0.01).log10());
    let (low, high) = (
        values().fold(f64::MAX, f64::min).floor(),
        values().fold(f64::MIN, f64::max).ceil(),
    );
    if all.is_empty() || high <= low {
        return None;
    }
    let (height, left, bottom) = (450.0, 70.0, 370.0);
    let nines = |percentile: f64| -(1.0 - percentile / 100.0).max(1e-4).log10();
    let x = |percentile: f64| left + nines(percentile) / 4.0 * (WIDTH - left - 30.0);
    let y = |value: f64| bottom - (value.max(0.01).log10() - low) / (high - low) * (bottom - TOP - 20.0);
    let mut svg = head(height, &format!("{} ({})", row.title, row.unit));
    for percentile in [0.0, 50.0, 90.0, 99.0, 99.9] {
        let at = x(percentile);
        let _ = writeln!(
            svg,
            "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom}\" stroke=\"#ddd\"/>\
             <text x=\"{at:.1}\" y=\"{:.0}\" text-anchor=\"middle\">p{percentile}</text>",
            bottom + 18.0
        );
    }
    for decade in low as i32..=high as i32 {
        let at = y(10f64.powi(decade));
        let _ = writeln!(
            svg,
            "<line x1=\"{left}\" x2=\"{WIDTH}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left - 6.0,
            at + 4.0,
            10f64.powi(decade)
        );
    }
    for (n, (distribution, percentiles)) in row.distributions.iter().zip(&all).enumerate() {
        let colour = COLOURS[n % COLOURS.len()];
        let points: Vec<String> = percentiles
            .iter()
            .map(|(percentile, value)| format!("{:.1},{:.1}", x(*percentile), y(*value)))
            .collect();
        let _ = writeln!(
            svg,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{}\"/>\
             <text x=\"{:.0}\" y=\"{:.0}\" fill=\"{colour}\">{}</text>",
            points.join(" "),
            left + 10.0 + 190.0 * (n % 4) as f64,
            height - 14.0 - 16.0 * (n / 4) as f64,
            escape(&distribution.peer)
        );
    }
    Some(svg + "</svg>\n")
}
