//! `help`: the verbs, from their definitions.

use super::{
    error::{CommandError, Exit},
    invocation::Invocation,
    output::Format,
    table::{self, Table},
    verb::{self, Act, Needs, VERBS},
};
use crate::ssh::Role;
use serde::Serialize;

/// The narrowest terminal that has room for the table; on others, texts go on in the next line.
const TABLE_COLUMNS: u32 = 96;
/// What stands before such texts.
const INDENT: &str = "    ";

/// What stands below the verbs.
const END: [&str; 3] = [
    "Usage: ssh COORDINATOR VERB …; ‘help VERB’ explains one.",
    "Every verb takes --json for one JSON object per line.",
    "Long lists come in pages: the last id of one, with --after, begins the next.",
];

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
                Needs::Nothing | Needs::AnyKey => None,
                Needs::Own => Some(Role::Submitter.to_string()),
                Needs::Role(role) => Some(role.to_string()),
            };
            if output.format() == Format::Json {
                let object =
                    Object { verb: verb.name, role, about: verb.about, example: verb.example };
                output.json(&object).await?;
                continue;
            }
            let role = role.unwrap_or_else(|| "any key".to_owned());
            match output.columns().filter(|&columns| columns > 0 && columns < TABLE_COLUMNS) {
                Some(columns) => {
                    output.line(&format!("{} ({role})", verb.name)).await?;
                    output.text(&table::wrapped(verb.about, INDENT, columns)).await?;
                }
                None => table.row(vec![verb.name.to_owned(), role, verb.about.to_owned()]),
            }
        }
        if output.format() == Format::Text {
            if !table.is_empty() {
                output.table(&table).await?;
            }
            output.line("").await?;
            let columns = output.columns().filter(|&columns| columns > 0).unwrap_or(u32::MAX);
            for line in END {
                output.text(&table::wrapped(line, "", columns)).await?;
            }
        }
        Ok(Exit::Done)
    }
}
