//! Manual pages and completions, from the definitions of the processes and the verbs.
//!
//! Nothing is written by hand but what frames a page, so that they cannot say anything else than
//! `help` does.

use super::verb::{self, VERBS};
use clap::{Arg, Command};
use std::fmt::Write as _;

/// What every page of a verb says of its end.
const EXIT_STATUS: &str = "\
.SH EXIT STATUS\n0 done; 1 the answer is negative; 2 the words make no command; 3 there is no such \
thing; 4 the key may not; 5 refused by a limit or for bad input; 75 try again later.\n";

/// One file: its path below the folder of all, and its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The path, such as `man1/steading.1`.
    pub path: String,
    /// The text.
    pub text: String,
}

/// One thing that the program does: a part, or a verb.
struct Topic {
    /// What follows `steading` on the command line.
    name: String,
    about: String,
    command: Command,
    /// A line that does something useful, of verbs.
    example: Option<&'static str>,
}

/// Returns the pages and completions of the program; `processes` are the definitions of its parts.
#[must_use]
pub fn pages(processes: Command) -> Vec<Page> {
    let topics = topics(processes);
    let mut pages = vec![Page { path: "man1/steading.1".to_owned(), text: overview(&topics) }];
    pages.extend(topics.iter().map(|topic| Page {
        path: format!("man1/steading-{}.1", topic.name.replace(' ', "-")),
        text: page(topic),
    }));
    for (path, text) in [
        ("bash/steading", bash(&topics)),
        ("zsh/_steading", zsh(&topics)),
        ("fish/steading.fish", fish(&topics)),
    ] {
        pages.push(Page { path: path.to_owned(), text });
    }
    pages
}

fn topics(mut processes: Command) -> Vec<Topic> {
    processes.build();
    let mut topics = Vec::new();
    for part in processes.get_subcommands().filter(|part| is_shown(part)) {
        let is_verb = VERBS.iter().any(|verb| verb.name == part.get_name());
        // The verb of that name says what it takes.
        if !is_verb {
            add(&mut topics, part, "", None);
        }
    }
    let mut verbs = verb::commands(None);
    verbs.build();
    for command in verbs.get_subcommands() {
        let verb = VERBS.iter().find(|verb| verb.name == command.get_name());
        add(&mut topics, command, "", verb.map(|verb| verb.example));
    }
    topics
}

/// Adds a command and what is below it.
fn add(topics: &mut Vec<Topic>, command: &Command, before: &str, example: Option<&'static str>) {
    let name = format!("{before}{}", command.get_name());
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let below = format!("{name} ");
    topics.push(Topic { name, about, command: command.clone(), example });
    for command in command.get_subcommands().filter(|command| is_shown(command)) {
        add(topics, command, &below, example);
    }
}

fn is_shown(command: &Command) -> bool {
    !command.is_hide_set() && command.get_name() != "help"
}

/// The page of the program.
fn overview(topics: &[Topic]) -> String {
    let mut text = heading("STEADING");
    text.push_str(
        ".SH NAME\nsteading \\- build Guix and Nix derivations on many machines, over SSH\n",
    );
    text.push_str(".SH SYNOPSIS\n.B steading\n.I PART\n[\\fIOPTION\\fR...]\n.br\n.B ssh\n");
    text.push_str(".I COORDINATOR VERB\n[\\fIOPTION\\fR...]\n.SH DESCRIPTION\n");
    text.push_str(
        "One program plays every part. Verbs are run with the stock ssh client; \
         .B steading\n.I VERB\ndoes the same with the destination in\n.BR STEADING_COORDINATOR .\n",
    );
    for (title, is_verb) in [("PARTS", false), ("VERBS", true)] {
        writeln!(text, ".SH {title}").ok();
        for topic in topics.iter().filter(|topic| topic.example.is_some() == is_verb) {
            let name = escaped(&topic.name.replace(' ', "-"));
            writeln!(text, ".TP\n.BR steading\\-{name} (1)\n{}", escaped(&topic.about)).ok();
        }
    }
    text
}

/// The page of a part or a verb.
fn page(topic: &Topic) -> String {
    let dashed = topic.name.replace(' ', "-");
    let mut text = heading(&format!("STEADING-{}", dashed.to_uppercase()));
    let about = escaped(&topic.about);
    writeln!(text, ".SH NAME\nsteading\\-{} \\- {about}", escaped(&dashed)).ok();
    let program = if topic.example.is_some() { "ssh \\fICOORDINATOR\\fB" } else { "steading" };
    writeln!(text, ".SH SYNOPSIS\n\\fB{program} {}\\fR", escaped(&topic.name)).ok();
    let shown = |arg: &&Arg| !arg.is_hide_set() && arg.get_id() != "help";
    let arguments: Vec<&Arg> = topic.command.get_arguments().filter(shown).collect();
    for arg in &arguments {
        let words = call(arg);
        let many = if repeats(arg) { "..." } else { "" };
        let optional = !arg.is_required_set();
        let (open, close) = if optional { ("[", "]") } else { ("", "") };
        writeln!(text, "{open}{words}{close}{many}").ok();
    }
    if !arguments.is_empty() {
        text.push_str(".SH OPTIONS\n");
    }
    for arg in arguments {
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        writeln!(text, ".TP\n{}\n{}", call(arg), escaped(&help)).ok();
        let usual = arg.get_default_values().iter().filter_map(|value| value.to_str());
        let usual = usual.collect::<Vec<_>>().join(" ");
        if !usual.is_empty() && arg.get_action().takes_values() {
            writeln!(text, "Usually {}.", escaped(&usual)).ok();
        }
    }
    if let Some(example) = topic.example {
        writeln!(text, ".SH EXAMPLE\n.nf\n{}\n.fi", escaped(example)).ok();
        text.push_str(EXIT_STATUS);
    }
    text.push_str(".SH SEE ALSO\n.BR steading (1),\n.BR ssh (1)\n");
    text
}

fn heading(title: &str) -> String {
    format!(
        ".TH {} 1 \"\" \"steading {}\" \"Steading\"\n",
        escaped(title),
        env!("CARGO_PKG_VERSION")
    )
}

/// Returns how an argument is given, in bold and italics.
fn call(arg: &Arg) -> String {
    let values: Vec<String> = match arg.get_value_names() {
        Some(names) => names.iter().map(|name| escaped(name)).collect(),
        None => vec![escaped(&arg.get_id().as_str().to_uppercase())],
    };
    let values = format!("\\fI{}\\fR", values.join(" "));
    let mut words = Vec::new();
    words.extend(arg.get_short().map(|short| format!("\\fB\\-{short}\\fR")));
    words.extend(arg.get_long().map(|long| format!("\\fB\\-\\-{}\\fR", escaped(long))));
    match (words.is_empty(), arg.get_action().takes_values()) {
        (true, _) => values,
        (false, true) => format!("{} {values}", words.join(", ")),
        (false, false) => words.join(", "),
    }
}

fn repeats(arg: &Arg) -> bool {
    matches!(arg.get_action(), clap::ArgAction::Append | clap::ArgAction::Count)
}

/// Returns a text that roff takes as it is.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for (number, line) in text.lines().enumerate() {
        if number > 0 {
            escaped.push('\n');
        }
        if line.starts_with(['.', '\'']) {
            escaped.push_str("\\&");
        }
        for character in line.chars() {
            match character {
                '\\' => escaped.push_str("\\e"),
                '-' => escaped.push_str("\\-"),
                other => escaped.push(other),
            }
        }
    }
    escaped
}

/// Returns the first words, each once, with what each means.
fn firsts(topics: &[Topic]) -> impl Iterator<Item = &Topic> {
    topics.iter().filter(|topic| !topic.name.contains(' '))
}

/// Returns what may follow a first word: its options, and the words below it, with what each means.
fn followers<'a>(topics: &'a [Topic], first: &'a Topic) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let below = format!("{} ", first.name);
    for topic in topics {
        let rest = topic.name.strip_prefix(&below);
        if let Some(word) = rest {
            found.push((word.to_owned(), topic.about.clone()));
        }
        if rest.is_some() || topic.name == first.name {
            let options = topic.command.get_arguments().filter(|arg| !arg.is_hide_set());
            found.extend(options.filter_map(|arg| {
                let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
                let help = help.lines().next().unwrap_or_default().to_owned();
                Some((format!("--{}", arg.get_long()?), help))
            }));
        }
    }
    found.sort();
    found.dedup_by(|one, other| one.0 == other.0);
    found
}

fn bash(topics: &[Topic]) -> String {
    let names: Vec<&str> = firsts(topics).map(|topic| topic.name.as_str()).collect();
    let mut text = format!(
        "# bash completion for steading\n_steading() {{\n    local words\n    \
         if [ \"$COMP_CWORD\" -eq 1 ]; then\n        words='{}'\n    else\n        \
         case ${{COMP_WORDS[1]}} in\n",
        names.join(" ")
    );
    for topic in firsts(topics) {
        let words: Vec<String> =
            followers(topics, topic).into_iter().map(|(word, _)| word).collect();
        writeln!(text, "            {}) words='{}' ;;", topic.name, words.join(" ")).ok();
    }
    text.push_str(
        "            *) words='' ;;\n        esac\n    fi\n    \
         COMPREPLY=($(compgen -W \"$words\" -- \"${COMP_WORDS[COMP_CWORD]}\"))\n}\n\
         complete -o default -F _steading steading\n",
    );
    text
}

fn zsh(topics: &[Topic]) -> String {
    let item = |(word, help): (String, String)| {
        format!("'{word}:{}'", help.replace('\'', "’").replace(':', "\\:"))
    };
    let mut text = "#compdef steading\nlocal -a words_here\nif (( CURRENT == 2 )); then\n    \
                    words_here=(\n"
        .to_owned();
    for topic in firsts(topics) {
        writeln!(text, "        {}", item((topic.name.clone(), topic.about.clone()))).ok();
    }
    text.push_str(
        "    )\n    _describe 'part or verb' words_here\n    return\nfi\ncase $words[2] in\n",
    );
    for topic in firsts(topics) {
        let items: Vec<String> = followers(topics, topic).into_iter().map(item).collect();
        writeln!(text, "    {}) words_here=({}) ;;", topic.name, items.join(" ")).ok();
    }
    text.push_str("esac\n_describe -o 'option' words_here || _files\n");
    text
}

fn fish(topics: &[Topic]) -> String {
    let quoted = |help: &str| help.replace('\\', "\\\\").replace('\'', "\\'");
    let mut text = "# fish completion for steading\n".to_owned();
    for topic in firsts(topics) {
        let about = quoted(&topic.about);
        let name = &topic.name;
        writeln!(text, "complete -c steading -n __fish_use_subcommand -a {name} -d '{about}'").ok();
        for (word, help) in followers(topics, topic) {
            let kind = match word.strip_prefix("--") {
                Some(long) => format!("-l {long}"),
                None => format!("-a {word}"),
            };
            let help = quoted(&help);
            let seen = format!("'__fish_seen_subcommand_from {name}'");
            writeln!(text, "complete -c steading -n {seen} {kind} -d '{help}'").ok();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roff_takes_foreign_text_as_it_is() {
        assert_eq!(escaped(".TH x\n'a\\b --c"), "\\&.TH x\n\\&'a\\eb \\-\\-c");
    }

    #[test]
    fn every_verb_has_a_page_with_all_its_options() {
        let pages = pages(Command::new("steading").subcommand(Command::new("agent")));
        for verb in &VERBS {
            let path = format!("man1/steading-{}.1", verb.name);
            let page = pages.iter().find(|page| page.path == path).unwrap();
            assert!(page.text.contains(".SH EXAMPLE") && page.text.contains("json"), "{path}");
        }
        let submit = pages.iter().find(|page| page.path.ends_with("steading-submit.1")).unwrap();
        assert!(submit.text.contains("\\fB\\-\\-max\\-silent\\fR \\fIS\\fR"), "{}", submit.text);
    }
}
