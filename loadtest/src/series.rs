//! Figures over time, or over any other measure that grows.

use serde::Serialize;

/// One line of a chart.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Series {
    /// For the legend.
    pub(crate) name: String,
    /// Of the values, such as `MiB`.
    pub(crate) unit: &'static str,
    /// Where (seconds since the start, or connections) and what.
    pub(crate) points: Vec<(f64, f64)>,
}

/// Lines that share both axes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Chart {
    /// One line for the reader.
    pub(crate) title: String,
    /// What the horizontal axis shows, such as `seconds`.
    pub(crate) across: &'static str,
    /// At least one.
    pub(crate) lines: Vec<Series>,
}
