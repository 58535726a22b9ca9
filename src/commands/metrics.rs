//! `metrics`: what is worth a graph, for Prometheus.

use super::{
    error::{CommandError, Exit},
    invocation::Invocation,
    output::Format,
    verb::Act,
};
use crate::coordinator::care::metrics::{self, MetricsError};
use serde::Serialize;
use std::collections::BTreeMap;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Metrics;

#[derive(Serialize)]
struct Object<'a> {
    name: String,
    /// `gauge`, `counter` or `histogram`.
    kind: &'static str,
    labels: BTreeMap<&'static str, &'a str>,
    value: f64,
}

impl Act for Metrics {
    async fn run(self, invocation: &mut Invocation) -> Result<Exit, CommandError> {
        let exposition = metrics::gather(&invocation.coordinator).await?;
        if invocation.output.format() == Format::Text {
            invocation.output.text(&exposition.text()).await?;
            return Ok(Exit::Done);
        }
        for family in &exposition.families {
            for sample in &family.samples {
                let labels = sample.labels.iter().map(|(name, value)| (*name, value.as_str()));
                let object = Object {
                    name: format!("{}{}", family.name, sample.suffix),
                    kind: family.kind.word(),
                    labels: labels.collect(),
                    value: sample.value,
                };
                invocation.output.json(&object).await?;
            }
        }
        Ok(Exit::Done)
    }
}

impl From<MetricsError> for CommandError {
    fn from(error: MetricsError) -> Self {
        match error {
            MetricsError::Stopping(error) => Self::Stopping(error),
            MetricsError::Store(error) => Self::Store(error),
            MetricsError::Io(error) => Self::Depot(error.into()),
        }
    }
}
