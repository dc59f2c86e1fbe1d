//! A guide whose fenced blocks a test runs: which they are, where each belongs, and that none is forgotten.
//!
//! The info string of a fence says what is done with the block: `sh host1 host2` runs it on these hosts, one after the other;
//! `sh host1 exit=1,3` expects one of these exit codes; `toml host1 /path` writes it to a file there. `text` is for readers only.

/// One block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Where the block begins, counted from 1.
    pub line: usize,
    /// The heading above it, without its marks.
    pub section: String,
    /// What to do with it.
    pub action: Action,
    /// What is in it.
    pub text: String,
}

/// What a block is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// A shell runs it on each of these hosts in turn.
    Run {
        /// Where.
        hosts: Vec<String>,
        /// What it may end with.
        exit: Vec<i32>,
    },
    /// It is the content of a file.
    Write {
        /// Where.
        host: String,
        /// Absolute.
        path: String,
    },
}

/// All blocks in order. An error says what is wrong with which line.
pub fn blocks(markdown: &str) -> Result<Vec<Block>, String> {
    let mut found = Vec::new();
    let mut section = String::new();
    let mut lines = markdown.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        if let Some(heading) = line.strip_prefix("## ") {
            heading.trim().clone_into(&mut section);
        }
        let Some(info) = line.strip_prefix("```") else { continue };
        let mut text = String::new();
        loop {
            match lines.next() {
                Some((_, "```")) => break,
                Some((_, line)) => {
                    text.push_str(line);
                    text.push('\n');
                }
                None => return Err(format!("line {}: the block has no end", number + 1)),
            }
        }
        let action = action(info).map_err(|reason| format!("line {}: {reason}", number + 1))?;
        if let Some(action) = action {
            found.push(Block { line: number + 1, section: section.clone(), action, text });
        }
    }
    Ok(found)
}

fn action(info: &str) -> Result<Option<Action>, String> {
    let mut words = info.split_whitespace();
    match words.next() {
        Some("text") => Ok(None),
        Some("sh") => {
            let (mut hosts, mut exit) = (Vec::new(), vec![0]);
            for word in words {
                match word.strip_prefix("exit=") {
                    Some(codes) => {
                        let codes = codes.split(',').map(str::parse).collect::<Result<_, _>>();
                        exit = codes.map_err(|_| format!("{word:?} names no exit codes"))?;
                    }
                    None => hosts.push(word.to_owned()),
                }
            }
            if hosts.is_empty() {
                return Err("commands that are on no host".to_owned());
            }
            Ok(Some(Action::Run { hosts, exit }))
        }
        Some("toml") => match (words.next(), words.next()) {
            (Some(host), Some(path)) if path.starts_with('/') => {
                Ok(Some(Action::Write { host: host.to_owned(), path: path.to_owned() }))
            }
            _ => Err("a file that is nowhere".to_owned()),
        },
        _ => Err(format!("{info:?}: only sh, toml and text are known")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_with_what_they_are_for() {
        let guide = "# G\n## One\n```sh a b exit=1,3\nls\npwd\n```\nwords\n```text\nx\n```\n## Two\n\
                     ```toml a /etc/f\nk = 1\n```\n";
        let found = blocks(guide).unwrap();
        let run = Action::Run { hosts: vec!["a".to_owned(), "b".to_owned()], exit: vec![1, 3] };
        let write = Action::Write { host: "a".to_owned(), path: "/etc/f".to_owned() };
        let block = |line, section: &str, action, text: &str| Block {
            line,
            section: section.to_owned(),
            action,
            text: text.to_owned(),
        };
        let expected = [block(3, "One", run, "ls\npwd\n"), block(12, "Two", write, "k = 1\n")];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_block_that_nobody_would_run_is_an_error() {
        for wrong in ["```\nls\n```\n", "```sh\nls\n```\n", "```toml a\n```\n", "```sh a\nls\n"] {
            assert!(blocks(wrong).is_err(), "{wrong}");
        }
    }
}
