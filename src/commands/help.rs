//! `help`: the verbs, from their definitions.

use super::{
    error::{CommandError, Exit},
    invocation::Invocation,
    output::Format,
    table::Table,
    verb::{self, Act, Needs, VERBS},
};
use serde::Serialize;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Help {
    /// The verb to explain
    verb: Option<String>,
}

#[derive(Serialize)]
struct Object<'a> {
    verb: &'a str,
    role: Option<String>,
    about: &'a str,
    example: &'a str,
}

impl Act for Help {
    async fn run(self, invocation: &mut Invocation) -> Result<Exit, CommandError> {
        let output = &mut invocation.output;
        if let Some(name) = &self.verb {
            let text = verb::usage(name, output.columns())?;
            if output.format() == Format::Text {
                output.text(&text).await?;
                return Ok(Exit::Done);
            }
        }
        let wanted = |name: &str| self.verb.as_deref().is_none_or(|verb| verb == name);
        let mut table = Table::new(&["verb", "needs", "what it does"]);
        for verb in VERBS.iter().filter(|verb| wanted(verb.name)) {
            let role = match verb.needs {
                Needs::AnyKey => None,
                Needs::Role(role) => Some(role.to_string()),
            };
            if output.format() == Format::Json {
                let object =
                    Object { verb: verb.name, role, about: verb.about, example: verb.example };
                output.json(&object).await?;
            } else {
                let role = role.unwrap_or_else(|| "any key".to_owned());
                table.row(vec![verb.name.to_owned(), role, verb.about.to_owned()]);
            }
        }
        if output.format() == Format::Text {
            output.table(&table).await?;
            output.line("").await?;
            output.line("Usage: ssh COORDINATOR VERB …; ‘help VERB’ explains one.").await?;
            output.line("Every verb takes --json for one JSON object per line.").await?;
        }
        Ok(Exit::Done)
    }
}
