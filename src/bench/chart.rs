//! The report as a picture: one panel for each thing that was measured, one below the other.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::BenchError;
use super::report::{GatewayStages, LatencyReport, Report, SearchReport, Trial};

const WIDTH: u32 = 900;
const PANEL: u32 = 320;
const HEAD: u32 = 60;
const BLUE_TONE: RGBColor = RGBColor(38, 98, 166);
const RED_TONE: RGBColor = RGBColor(190, 60, 40);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Writes what there is of `report` to look at as SVG.
///
/// # Errors
/// [`BenchError::Chart`].
pub(super) fn write(report: &Report, file: &Path) -> Result<(), BenchError> {
    let text = svg(report).map_err(|error| BenchError::Chart(error.to_string()))?;
    std::fs::write(file, text)
        .map_err(|error| BenchError::Chart(format!("{}: {error}", file.display())))
}

fn svg(report: &Report) -> Result<String, Box<dyn std::error::Error>> {
    let extra = report.stages.len()
        + usize::from(report.search.is_some())
        + usize::from(report.latency.is_some());
    let panels = 1 + u32::try_from(extra)?;
    let mut text = String::new();
    {
        let root =
            SVGBackend::with_string(&mut text, (WIDTH, HEAD + panels * PANEL)).into_drawing_area();
        root.fill(&WHITE)?;
        let (head, body) = root.split_vertically(HEAD);
        head.draw_text(
            &title(report),
            &("sans-serif", 17).into_text_style(&head),
            (14, 10),
        )?;
        head.draw_text(
            &machine(report),
            &("sans-serif", 13).into_text_style(&head),
            (14, 34),
        )?;
        let mut areas = body.split_evenly((panels as usize, 1)).into_iter();
        if let Some(area) = areas.next() {
            trials(&area, &report.trials)?;
        }
        if let Some(search) = &report.search
            && let Some(area) = areas.next()
        {
            search_panel(&area, search)?;
        }
        if let Some(latency) = &report.latency
            && let Some(area) = areas.next()
        {
            latency_panel(&area, latency)?;
        }
        for gateway in &report.stages {
            if let Some(area) = areas.next() {
                stages(&area, gateway)?;
            }
        }
        root.present()?;
    }
    Ok(text)
}

fn title(report: &Report) -> String {
    let scenario = &report.scenario;
    format!(
        "simplon bench: {}, {}, sizes {}, {}, SAs: {}, flows: {}",
        scenario.through,
        scenario.cipher,
        scenario.sizes,
        scenario.families.join(" "),
        scenario.sas,
        scenario.flows
    )
}

fn machine(report: &Report) -> String {
    format!(
        "median {:.3} Mpps, {:.2} Gbit/s inside; AES-GCM {}, TSC {:.0} MHz",
        report.summary.mpps.median,
        report.summary.inner_gbps.median,
        report.machine.aead,
        report.machine.tsc_hz as f64 / 1e6
    )
}

fn most(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, f64::max).max(1e-9)
}

/// Bars with a name below each.
fn bars(area: &Area<'_>, caption: &str, unit: &str, values: &[(String, f64)]) -> Drawn {
    let top = most(values.iter().map(|(_, value)| *value)) * 1.15;
    let count = values.len() as f64;
    let mut chart = ChartBuilder::on(area)
        .caption(caption, ("sans-serif", 15))
        .margin(14)
        .x_label_area_size(34)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..count, 0.0..top)?;
    let names: Vec<&str> = values.iter().map(|(name, _)| name.as_str()).collect();
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(0)
        .y_desc(unit)
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (at, (name, value)) in values.iter().enumerate() {
        let left = at as f64;
        chart.draw_series([Rectangle::new(
            [(left + 0.15, 0.0), (left + 0.85, *value)],
            BLUE_TONE.filled(),
        )])?;
        let (x, y) = chart.backend_coord(&(left + 0.5, *value));
        let style = ("sans-serif", 12).into_text_style(area);
        let digits = if top < 20.0 { 3 } else { 0 };
        let figure = format!("{value:.digits$}");
        let half = |text: &str| i32::try_from(text.len() * 3).unwrap_or(0);
        let (left_edge, top_edge) = area.get_pixel_range();
        let local = |x: i32, y: i32| (x - left_edge.start, y - top_edge.start);
        area.draw_text(&figure, &style, local(x - half(&figure), y - 16))?;
        let (_, floor) = chart.backend_coord(&(left + 0.5, 0.0));
        let name = names.get(at).copied().unwrap_or(name);
        area.draw_text(name, &style, local(x - half(name), floor + 8))?;
    }
    Ok(())
}

fn trials(area: &Area<'_>, trials: &[Trial]) -> Drawn {
    let values: Vec<_> = trials
        .iter()
        .enumerate()
        .map(|(at, trial)| (format!("trial {}", at + 1), trial.mpps))
        .collect();
    bars(area, "Rate", "Mpps", &values)
}

fn stages(area: &Area<'_>, gateway: &GatewayStages) -> Drawn {
    let sum: f64 = gateway.stages.iter().map(|stage| stage.cycles).sum();
    let values: Vec<_> = gateway
        .stages
        .iter()
        .map(|stage| (stage.stage.clone(), stage.cycles))
        .collect();
    let caption = format!("Cycles by stage: {} ({sum:.0} in all)", gateway.gateway);
    bars(area, &caption, "TSC cycles per packet", &values)
}

/// Loss over offered rate, with what was found.
fn search_panel(area: &Area<'_>, search: &SearchReport) -> Drawn {
    let ratio = |sent: u64, lost: u64| lost as f64 / sent.max(1) as f64 * 100.0;
    let points: Vec<(f64, f64)> = search
        .trials
        .iter()
        .map(|trial| (trial.mpps, ratio(trial.sent, trial.lost)))
        .collect();
    let (right, top) = (
        most(points.iter().map(|point| point.0)) * 1.05,
        most(points.iter().map(|point| point.1)) * 1.1,
    );
    let caption = if search.ndr.mpps.is_some() {
        "Search for the no-drop rate"
    } else {
        "Search for the no-drop rate: NDR none, something was lost at every rate"
    };
    let mut chart = ChartBuilder::on(area)
        .caption(caption, ("sans-serif", 15))
        .margin(14)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..right, 0.0..top)?;
    chart
        .configure_mesh()
        .x_desc("Mpps offered")
        .y_desc("lost, %")
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (name, bound, color) in [
        ("NDR", search.ndr, BLUE_TONE),
        ("PDR (0.5 %)", search.pdr, RED_TONE),
    ] {
        if let Some(mpps) = bound.mpps {
            chart
                .draw_series(LineSeries::new(
                    [(mpps, 0.0), (mpps, top)],
                    color.stroke_width(2),
                ))?
                .label(format!("{name}: {mpps:.3} Mpps"))
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2))
                });
        }
    }
    chart.draw_series(
        points
            .iter()
            .map(|point| Circle::new(*point, 3, BLACK.filled())),
    )?;
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(())
}

/// Time over percentile, both on a scale where the tail can be seen.
fn latency_panel(area: &Area<'_>, latency: &LatencyReport) -> Drawn {
    let values: Vec<_> = latency
        .percentiles
        .iter()
        .map(|each| {
            let name = if each.percent >= 100.0 {
                "most".to_owned()
            } else {
                format!("p{}", each.percent)
            };
            (name, each.ns as f64 / 1000.0)
        })
        .collect();
    let top = most(values.iter().map(|(_, micros)| *micros)) * 1.5;
    let low = values
        .iter()
        .map(|(_, micros)| *micros)
        .fold(top, f64::min)
        .max(0.01)
        / 1.5;
    let count = values.len();
    let name = |at: usize| {
        values
            .get(at)
            .map_or_else(String::new, |(name, _)| name.clone())
    };
    let mut chart = ChartBuilder::on(area)
        .caption(
            format!("Latency at {:.3} Mpps", latency.mpps),
            ("sans-serif", 15),
        )
        .margin(14)
        .x_label_area_size(34)
        .y_label_area_size(70)
        .build_cartesian_2d(
            (0..count.saturating_sub(1)).into_segmented(),
            (low..top).log_scale(),
        )?;
    chart
        .configure_mesh()
        .y_desc("µs")
        .x_label_formatter(&|at| match at {
            SegmentValue::CenterOf(at) | SegmentValue::Exact(at) => name(*at),
            SegmentValue::Last => String::new(),
        })
        .y_label_formatter(&|micros| format!("{micros:.0}"))
        .light_line_style(TRANSPARENT)
        .draw()?;
    let points: Vec<_> = values
        .iter()
        .enumerate()
        .map(|(at, (_, micros))| (SegmentValue::CenterOf(at), *micros))
        .collect();
    chart.draw_series(LineSeries::new(points.clone(), BLUE_TONE.stroke_width(2)))?;
    chart.draw_series(
        points
            .into_iter()
            .map(|point| Circle::new(point, 4, BLUE_TONE.filled())),
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::report::{Bound, Percentile, SearchTrial, StageCycles};
    use super::*;

    #[test]
    fn chart_shows_every_panel_that_there_is() {
        let report = Report {
            trials: vec![Trial {
                mpps: 1.5,
                ..Trial::default()
            }],
            search: Some(SearchReport {
                ndr: Bound {
                    mpps: Some(1.0),
                    fails_at_mpps: Some(1.1),
                },
                pdr: Bound::default(),
                trials: vec![SearchTrial {
                    mpps: 1.1,
                    sent: 100,
                    lost: 1,
                }],
            }),
            latency: Some(LatencyReport {
                percentiles: vec![Percentile {
                    percent: 50.0,
                    ns: 1700,
                }],
                ..LatencyReport::default()
            }),
            stages: vec![GatewayStages {
                gateway: "seal".into(),
                packets: 1,
                stages: vec![StageCycles {
                    stage: "parse".into(),
                    cycles: 20.0,
                }],
            }],
            ..Report::default()
        };
        let text = svg(&report).expect("drawn");
        for wanted in [
            "<svg",
            "trial 1",
            "NDR: 1.000 Mpps",
            "p50",
            "parse",
            "Latency at",
        ] {
            assert!(text.contains(wanted), "{wanted}");
        }
        let empty = svg(&Report::default()).expect("drawn");
        assert!(!empty.contains("Latency"));
    }
}
