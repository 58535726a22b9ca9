//! A command line to words, as a POSIX shell splits them, without a shell.

use super::{error::CommandError, table};

/// The longest command line, in bytes: some 6,000 builds by their ids. Longer lists go through
/// standard input.
const LINE_BYTES_MAX: usize = 256 * 1024;

/// Splits the line of an exec request.
pub(super) fn split(line: &[u8]) -> Result<Vec<String>, CommandError> {
    let usage = |text: &str| Err(CommandError::Usage(text.to_owned()));
    if line.len() > LINE_BYTES_MAX {
        return usage(
            "the command line is longer than 256 KiB: give paths through standard input, with ‘-’",
        );
    }
    let Ok(line) = std::str::from_utf8(line) else {
        return usage("the command line is not UTF-8: check the locale of the sending side");
    };
    match shell_words::split(line) {
        Ok(words) if words.is_empty() => usage("the command line is empty: ‘help’ lists the verbs"),
        Ok(words) => Ok(words),
        Err(_) => Err(CommandError::Usage(format!(
            "a quote is not closed in ‘{}’: remember that your own shell takes one level of quotes",
            table::excerpt(line),
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(line: &[u8]) -> String {
        let error = split(line).unwrap_err();
        assert_eq!(error.status(), 2);
        error.text()
    }

    #[test]
    fn words_are_split_as_a_shell_does_and_nothing_is_expanded() {
        let words = split(br#"submit  --tag 'a=b c' "d\"e" $HOME `x` *"#).unwrap();
        assert_eq!(words, ["submit", "--tag", "a=b c", "d\"e", "$HOME", "`x`", "*"]);
    }

    #[test]
    fn what_is_no_line_is_refused_with_a_reason() {
        assert!(told(b"").contains("empty"));
        assert!(told(b"  \n").contains("empty"));
        assert!(told(b"show 'x").contains("quote is not closed"));
        assert!(told(b"show \xff").contains("UTF-8"));
        assert!(told(&vec![b'x'; LINE_BYTES_MAX + 1]).contains("256 KiB"));
    }
}
