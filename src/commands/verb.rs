//! The table of verbs, and from words to one of them.

use super::{
    agents, audit, backup, builds, cancel, check, enroll, error::CommandError, error::Exit, events,
    gc, help, hooks, invocation::Invocation, keys, log, metrics, missing, nar, output::Format,
    outputs, prune, reload, retry, set, show, status, submit, table, unplaceable, version, wait,
    whoami, why,
};
use crate::ssh::Role;
use clap::{
    Arg, ArgAction, ArgMatches, Args, ColorChoice, Command,
    error::{ContextKind, ContextValue, ErrorKind},
};
use std::pin::Pin;

/// How wide help is where there is no terminal.
const HELP_COLUMNS: usize = 100;
/// The narrowest help: below this, words are cut rather than put one under another.
const HELP_COLUMNS_MIN: usize = 30;
/// How clap's own pointer to help begins; the verbs are explained by a verb.
const CLAP_HELP: &str = "For more information, try";

/// The arguments of a verb, and what it does with them.
pub(super) trait Act: Args + Send + 'static {
    /// Does it.
    fn run(
        self,
        invocation: &mut Invocation,
    ) -> impl Future<Output = Result<Exit, CommandError>> + Send;
}

/// Who may use a verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    /// Whoever has a key, known or not.
    Nothing,
    /// Everybody who was let in, agents too.
    AnyKey,
    /// People whose role includes this one.
    Role(Role),
    /// Submitters for what they submitted, operators for everything.
    Own,
}

/// What a verb's answer comes from.
pub(super) type Running<'a> = Pin<Box<dyn Future<Output = Result<Exit, CommandError>> + Send + 'a>>;

/// One verb.
pub(super) struct Verb {
    /// What it is called.
    pub(super) name: &'static str,
    /// Who may.
    pub(super) needs: Needs,
    /// What it does, in a few words.
    pub(super) about: &'static str,
    /// A line that does something useful.
    pub(super) example: &'static str,
    arguments: fn(Command) -> Command,
    /// Does it.
    pub(super) run: for<'a> fn(&'a mut Invocation, &'a ArgMatches) -> Running<'a>,
}

const VIEWER: Needs = Needs::Role(Role::Viewer);
const SUBMITTER: Needs = Needs::Role(Role::Submitter);
const OPERATOR: Needs = Needs::Role(Role::Operator);
const ADMIN: Needs = Needs::Role(Role::Admin);

/// All verbs, in the order in which `help` lists them.
pub(super) static VERBS: [Verb; 29] = [
    verb::<submit::Submit>(
        "submit",
        SUBMITTER,
        "ask for builds; prints their ids",
        "nix-store --export $(nix-store -qR DRV) | ssh COORDINATOR submit --closure --wait",
    ),
    verb::<missing::Missing>(
        "missing",
        SUBMITTER,
        "print which of the store paths on stdin are not held here",
        "nix-store -qR DRV | ssh COORDINATOR missing -",
    ),
    verb::<builds::Builds>(
        "builds",
        VIEWER,
        "list builds, the newest last",
        "ssh COORDINATOR builds --state failed --since 2h",
    ),
    verb::<show::Show>(
        "show",
        VIEWER,
        "print everything about a build",
        "ssh COORDINATOR show 01890a5d-ac96-774b-bcce-b302099a8057",
    ),
    verb::<why::Why>(
        "why",
        VIEWER,
        "say why a build is not built yet, or how it ended",
        "ssh COORDINATOR why 01890a5d-ac96-774b-bcce-b302099a8057",
    ),
    verb::<unplaceable::Unplaceable>(
        "unplaceable",
        VIEWER,
        "list what no agent can build, and why",
        "ssh COORDINATOR unplaceable",
    ),
    verb::<log::Log>(
        "log",
        VIEWER,
        "print the log of a build",
        "ssh COORDINATOR log -f 01890a5d-ac96-774b-bcce-b302099a8057",
    ),
    verb::<wait::Wait>(
        "wait",
        VIEWER,
        "wait for builds to end; fails unless all succeed",
        "ssh COORDINATOR wait --where-tag branch=core",
    ),
    verb::<cancel::Cancel>(
        "cancel",
        Needs::Own,
        "cancel builds, your own or as operator anybody's",
        "ssh COORDINATOR cancel --where-tag branch=core",
    ),
    verb::<retry::Retry>(
        "retry",
        Needs::Own,
        "try builds again that failed, were canceled or are deferred",
        "ssh COORDINATOR retry --where-tag branch=core --not-agent amber",
    ),
    verb::<set::Set>(
        "set",
        Needs::Own,
        "change priority, tags or holds of builds that have not ended",
        "ssh COORDINATOR set --where-tag branch=core --priority 20",
    ),
    verb::<outputs::Outputs>(
        "outputs",
        VIEWER,
        "say who built store paths, their hashes, and where they are published",
        "ssh COORDINATOR outputs /gnu/store/0c96x2i7vy7wb2jd0jlp1vlp1jvxijzy-hello-2.12.1",
    ),
    verb::<nar::Nar>(
        "nar",
        VIEWER,
        "print the nar of a store path, uncompressed",
        "ssh COORDINATOR nar /nix/store/0c96x2i7vy7wb2jd0jlp1vlp1jvxijzy-x | nix-store --restore x",
    ),
    verb::<agents::Agents>(
        "agents",
        VIEWER,
        "list agents; as operator pause, drain, resume or forget one",
        "ssh COORDINATOR agents drain amber --reason 'new disk' --deadline 2h",
    ),
    verb::<events::Events>(
        "events",
        VIEWER,
        "print what happened as JSON lines, and follow what happens",
        "ssh COORDINATOR events --since 0 --follow --type build-failure",
    ),
    verb::<hooks::Hooks>(
        "hooks",
        OPERATOR,
        "say how hooks fare; try again what one failed on",
        "ssh COORDINATOR hooks --failed",
    ),
    verb::<status::Status>(
        "status",
        VIEWER,
        "say how the farm is, and what to look at next",
        "ssh COORDINATOR status",
    ),
    verb::<metrics::Metrics>(
        "metrics",
        VIEWER,
        "print what is worth a graph, as Prometheus reads it",
        "ssh COORDINATOR metrics",
    ),
    verb::<reload::Reload>(
        "reload",
        ADMIN,
        "read steading.toml again; what the planner goes by holds at once",
        "ssh COORDINATOR reload",
    ),
    verb::<keys::Keys>(
        "keys",
        ADMIN,
        "list who is let in, approve and revoke keys, make tokens",
        "ssh COORDINATOR keys token new --expires 1d --uses 20 --role agent",
    ),
    verb::<audit::Audit>(
        "audit",
        ADMIN,
        "list who changed what or was refused, the latest last",
        "ssh COORDINATOR audit --since 1d --principal sam",
    ),
    verb::<check::Check>(
        "check",
        ADMIN,
        "compare memory, database, depot and what is published with one another",
        "ssh COORDINATOR check --repair",
    ),
    verb::<backup::Backup>(
        "backup",
        ADMIN,
        "print the database, to be kept elsewhere",
        "ssh COORDINATOR backup > steading.db.zst",
    ),
    verb::<prune::Prune>(
        "prune",
        ADMIN,
        "forget builds that ended long ago",
        "ssh COORDINATOR prune --older-than 90d",
    ),
    verb::<gc::Gc>(
        "gc",
        ADMIN,
        "withdraw nars that nobody needs",
        "ssh COORDINATOR gc --older-than 30d --keep-tag branch=release --dry-run",
    ),
    verb::<enroll::Enroll>(
        "enroll",
        Needs::Nothing,
        "as SSH user ‘enroll’ with an unknown key: ask to become known",
        "ssh enroll@COORDINATOR enroll --name amber",
    ),
    verb::<whoami::Whoami>(
        "whoami",
        Needs::AnyKey,
        "print who your key is and what it may",
        "ssh COORDINATOR whoami",
    ),
    verb::<help::Help>(
        "help",
        Needs::AnyKey,
        "list the verbs, or explain one",
        "ssh COORDINATOR help submit",
    ),
    verb::<version::Version>(
        "version",
        Needs::AnyKey,
        "print the version and which protocols agents may speak",
        "ssh COORDINATOR version",
    ),
];

const fn verb<A: Act>(
    name: &'static str,
    needs: Needs,
    about: &'static str,
    example: &'static str,
) -> Verb {
    Verb { name, needs, about, example, arguments: A::augment_args, run: run_as::<A> }
}

fn run_as<'a, A: Act>(invocation: &'a mut Invocation, matches: &'a ArgMatches) -> Running<'a> {
    Box::pin(async move {
        let arguments = A::from_arg_matches(matches)
            .map_err(|error| CommandError::Usage(rendered(&error, None)))?;
        arguments.run(invocation).await
    })
}

impl Verb {
    /// Asks whether a role may use the verb.
    pub(super) fn authorize(&self, role: Role) -> Result<(), CommandError> {
        if role == Role::Stranger && self.needs != Needs::Nothing {
            return Err(CommandError::Stranger);
        }
        match self.needs {
            Needs::Nothing | Needs::AnyKey => Ok(()),
            Needs::Role(needed) if role.includes(needed) => Ok(()),
            Needs::Own if role.includes(Role::Submitter) => Ok(()),
            Needs::Role(needed) => Err(CommandError::Role { have: role, verb: self.name, needed }),
            Needs::Own => Err(CommandError::NeitherOwn { have: role, verb: self.name }),
        }
    }

    fn command(&self) -> Command {
        // Behind the arguments, whose own descriptions clap would print otherwise.
        let command = (self.arguments)(Command::new(self.name));
        let example = format!("Example: {}", self.example);
        let more = command.get_after_long_help().map(ToString::to_string);
        let whole = more.map_or_else(|| example.clone(), |more| format!("{more}\n\n{example}"));
        command.about(self.about).long_about(None).after_help(example).after_long_help(whole)
    }
}

/// A verb and its arguments.
pub(super) struct Called {
    pub(super) verb: &'static Verb,
    pub(super) matches: ArgMatches,
    pub(super) format: Format,
}

/// Why words call no verb.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotCalled {
    /// They ask for help, which this is.
    Help(String),
    /// They are wrong, for this reason.
    Usage(String),
}

/// Finds the verb of some words and reads its arguments.
pub(super) fn parse(words: &[String], columns: Option<u32>) -> Result<Called, NotCalled> {
    let matches =
        commands(columns).try_get_matches_from(words).map_err(|error| not_called(&error, words))?;
    let called = matches.subcommand().and_then(|(name, matches)| {
        let verb = VERBS.iter().find(|verb| verb.name == name)?;
        Some((verb, matches.clone()))
    });
    let Some((verb, matches)) = called else {
        return Err(NotCalled::Usage("a verb is missing: ‘help’ lists them".to_owned()));
    };
    let format = if matches.get_flag("json") { Format::Json } else { Format::Text };
    Ok(Called { verb, matches, format })
}

/// Returns a text whose last line has an end like all others.
fn whole_lines(text: &str) -> String {
    format!("{}\n", text.trim_end())
}

/// Returns the full usage of a verb.
pub(super) fn usage(name: &str, columns: Option<u32>) -> Result<String, CommandError> {
    let mut commands = commands(columns);
    commands.build();
    if let Some(command) = commands.find_subcommand_mut(name) {
        return Ok(whole_lines(&command.render_long_help().to_string()));
    }
    match parse(&[name.to_owned()], columns) {
        Err(NotCalled::Usage(text) | NotCalled::Help(text)) => Err(CommandError::Usage(text)),
        Ok(called) => Ok(called.verb.about.to_owned()),
    }
}

/// Returns the definitions of all verbs, for a terminal of that width.
pub(super) fn commands(columns: Option<u32>) -> Command {
    let columns = columns.and_then(|columns| usize::try_from(columns).ok()).filter(|&n| n > 0);
    let json = Arg::new("json")
        .long("json")
        .action(ArgAction::SetTrue)
        .global(true)
        .help("Print one JSON object per line");
    Command::new("ssh COORDINATOR")
        .no_binary_name(true)
        .color(ColorChoice::Never)
        .term_width(columns.unwrap_or(HELP_COLUMNS).clamp(HELP_COLUMNS_MIN, HELP_COLUMNS))
        .disable_help_subcommand(true)
        .subcommand_required(true)
        .subcommand_value_name("VERB")
        .subcommand_help_heading("Verbs")
        .arg(json)
        .subcommands(VERBS.iter().map(Verb::command))
}

fn not_called(error: &clap::Error, words: &[String]) -> NotCalled {
    match error.kind() {
        ErrorKind::DisplayHelp => NotCalled::Help(whole_lines(&error.render().to_string())),
        ErrorKind::InvalidSubcommand => {
            let word = |kind| match error.get(kind) {
                Some(ContextValue::String(word)) => Some(word.clone()),
                // clap has the likeliest last.
                Some(ContextValue::Strings(words)) => words.last().cloned(),
                Some(_) | None => None,
            };
            let wrong = table::excerpt(&word(ContextKind::InvalidSubcommand).unwrap_or_default());
            // A verb may have verbs of its own.
            let outer = called_verb(words);
            let (which, list) = match outer {
                Some(outer) => {
                    let path = called_path(words);
                    (format!("verb ‘{path} {wrong}’"), format!("help {}", outer.name))
                }
                None => (format!("verb ‘{wrong}’"), "help".to_owned()),
            };
            NotCalled::Usage(match word(ContextKind::SuggestedSubcommand) {
                Some(meant) => format!("there is no {which}; did you mean ‘{meant}’?"),
                None => format!("there is no {which}: ‘{list}’ lists them"),
            })
        }
        _ => NotCalled::Usage(rendered(error, called_verb(words))),
    }
}

/// Returns the verb that words begin with, whatever follows.
fn called_verb(words: &[String]) -> Option<&'static Verb> {
    words.iter().find_map(|word| VERBS.iter().find(|verb| verb.name == word))
}

/// Returns the verbs that words name, each below the one before, as they are typed.
fn called_path(words: &[String]) -> String {
    let all = commands(None);
    let (mut command, mut path) = (&all, Vec::new());
    for word in words {
        if let Some(inner) = command.find_subcommand(word) {
            path.push(inner.get_name());
            command = inner;
        }
    }
    path.join(" ")
}

/// Returns what clap has to say, without its own marks and with our way to help.
fn rendered(error: &clap::Error, verb: Option<&Verb>) -> String {
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let said = text.lines().filter(|line| !line.starts_with(CLAP_HELP)).map(table::plain);
    let text = said.collect::<Vec<_>>().join("\n");
    let advice = match verb {
        // Whoever is not known yet may not use ‘help’.
        Some(verb) if verb.needs == Needs::Nothing => {
            format!("‘{} --help’ explains it", verb.name)
        }
        Some(verb) => format!("‘help {}’ explains it", verb.name),
        None => "‘help’ lists the verbs".to_owned(),
    };
    format!("{}\n\n{advice}", text.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    fn wrong(line: &str) -> String {
        match parse(&words(line), None) {
            Err(NotCalled::Usage(text)) => text,
            Err(NotCalled::Help(text)) => panic!("help: {text}"),
            Ok(called) => panic!("{line} calls {}", called.verb.name),
        }
    }

    #[test]
    fn the_definitions_are_consistent() {
        commands(None).debug_assert();
    }

    #[test]
    fn an_unknown_verb_is_named_with_the_one_that_was_meant() {
        assert_eq!(wrong("sumbit x"), "there is no verb ‘sumbit’; did you mean ‘submit’?");
        assert_eq!(wrong("sett x"), "there is no verb ‘sett’; did you mean ‘set’?");
        assert_eq!(wrong("zzzzzz"), "there is no verb ‘zzzzzz’: ‘help’ lists them");
        assert_eq!(
            wrong("agents puase amber"),
            "there is no verb ‘agents puase’; did you mean ‘pause’?"
        );
        assert_eq!(
            wrong("agents help"),
            "there is no verb ‘agents help’: ‘help agents’ lists them"
        );
        assert_eq!(
            wrong("keys token lsit"),
            "there is no verb ‘keys token lsit’; did you mean ‘list’?"
        );
        assert!(usage("stauts", None).unwrap_err().text().contains("did you mean ‘status’"));
        assert_eq!(usage("zzzzzz", None).unwrap_err().status(), 2);
    }

    #[test]
    fn json_is_understood_before_and_behind_the_verb() {
        for line in ["--json status", "status --json"] {
            assert_eq!(parse(&words(line), None).unwrap_or_else(|_| panic!()).format, Format::Json);
        }
        assert_eq!(parse(&words("status"), None).unwrap_or_else(|_| panic!()).format, Format::Text);
    }

    #[test]
    fn wrong_arguments_are_explained_without_colour() {
        let text = wrong("builds --limit many");
        assert!(text.contains("--limit") && !text.contains('\x1b'), "{text}");
        assert!(!text.starts_with("error"), "{text}");
        assert!(!text.contains("--help") && text.ends_with("‘help builds’ explains it"), "{text}");
        assert!(wrong("--nonsense").ends_with("‘help’ lists the verbs"));
        assert!(wrong("enroll x").ends_with("‘enroll --help’ explains it"));
        assert!(wrong("show").contains("ID"));
        assert!(wrong("show 7").contains("is not an id"), "{}", wrong("show 7"));
        assert!(wrong("wait").contains("--where-tag"));
    }

    #[test]
    fn roles_decide_who_may() {
        let named = |name| VERBS.iter().find(|verb| verb.name == name).unwrap();
        for verb in &VERBS {
            let may = |role: Role| verb.authorize(role).is_ok();
            let anybody = matches!(verb.name, "enroll" | "whoami" | "help" | "version");
            assert_eq!(may(Role::Stranger), verb.name == "enroll", "{}", verb.name);
            assert_eq!(may(Role::Agent), anybody, "{}", verb.name);
            assert!(may(Role::Admin), "{}", verb.name);
        }
        assert!(named("cancel").authorize(Role::Viewer).is_err());
        assert!(named("cancel").authorize(Role::Submitter).is_ok());
        assert!(named("check").authorize(Role::Operator).is_err());
        assert!(named("builds").authorize(Role::Viewer).is_ok());
    }

    #[test]
    fn every_verb_explains_itself() {
        for verb in &VERBS {
            let text = usage(verb.name, None).unwrap();
            assert!(text.contains(verb.about) && text.contains("Example: "), "{text}");
            assert!(text.lines().all(|line| line.chars().count() <= 120), "{text}");
        }
    }

    #[test]
    fn help_is_as_narrow_as_its_terminal() {
        for verb in &VERBS {
            let text = usage(verb.name, Some(60)).unwrap();
            let (arguments, example) = text.split_once("Example: ").unwrap();
            let arguments = arguments.lines().filter(|line| !line.starts_with("Usage: "));
            for line in arguments {
                assert!(line.chars().count() <= 60, "{}: {line}", verb.name);
            }
            let example: Vec<&str> = example.split_whitespace().collect();
            assert_eq!(example.join(" "), verb.example);
        }
    }
}
