//! Command lines that would do harm if a shell, or another program, read them.

/// The verbs that are called.
const VERBS: [&str; 16] = [
    "submit", "missing", "builds", "show", "why", "log", "wait", "cancel", "outputs", "nar",
    "agents", "status", "check", "whoami", "version", "help",
];

/// What is put into lines; `@` stands for a command that leaves a mark, `%` for the mark.
const PAYLOADS: [&str; 54] = [
    ";@",
    "; @",
    "; @ #",
    "| @",
    "|| @",
    "&& @",
    "& @",
    "\n@",
    "\r\n@",
    "\\\n@",
    "\0@",
    "$(@)",
    "`@`",
    "$((@))",
    "${x:-$(@)}",
    "${IFS}@",
    "$'\\x74ouch' %",
    "<(@)",
    ">(@)",
    ">%",
    ">>%",
    "2>%",
    "<%",
    "<<<%",
    "'; @; '",
    "\"; @; \"",
    "'\"'\"'; @",
    "'",
    "\"",
    "\\",
    "{@,}",
    "~",
    "*",
    "?",
    "[!a]*",
    "!!",
    "!@",
    "# @",
    "%0a@",
    "%s%n%x",
    "../../../../%",
    "-oProxyCommand=@",
    "--upload-pack=@",
    "--exec=@",
    "--output=%",
    "-e@",
    "-- @",
    "sh -c '@'",
    "/bin/sh -c '@'",
    "() { :;}; @",
    "eval @",
    "\u{2028}@",
    "\u{202e}@\u{ff1b}",
    "\x1b]0;@\x07\x1b[2J",
];

/// Where a payload `@` stands beside a verb `%`.
const PLACES: [&str; 6] =
    ["@", "%@", "@ %", "% --tag a=@", "% --where-tag 'x=@'", "--json % \"@\""];

/// Returns all of them. What they do, if they do it, is to make the file `marker`.
pub(crate) fn hostile_lines(marker: &str) -> Vec<String> {
    let command = format!("touch {marker}");
    let mut lines = Vec::new();
    for (number, payload) in PAYLOADS.iter().enumerate() {
        // In two steps, for the marker’s name could have either sign in it.
        let payload: String = payload
            .chars()
            .map(|sign| match sign {
                '@' => command.clone(),
                '%' => marker.to_owned(),
                other => other.to_string(),
            })
            .collect();
        lines.extend(VERBS.iter().map(|verb| format!("{verb} {payload}")));
        for (place, text) in PLACES.iter().enumerate() {
            let verb = VERBS[(number + place) % VERBS.len()];
            lines.push(text.replace('%', verb).replace('@', &payload));
        }
    }
    lines
}
