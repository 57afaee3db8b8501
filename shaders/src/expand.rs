//! The directives.

use std::collections::BTreeSet;

/// A source that cannot be put together: an error of whoever wrote or asked for the shader.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// An include of a file that is not there.
    #[error("{kernel}: no file `{file}` to include")]
    NoFile {
        /// The kernel.
        kernel: &'static str,
        /// The name.
        file: String,
    },
    /// A directive that makes no sense.
    #[error("{kernel}: `{line}`: {why}")]
    Directive {
        /// The kernel.
        kernel: &'static str,
        /// The line.
        line: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// What directives may refer to.
pub(crate) struct Context<'a> {
    pub(crate) kernel: &'static str,
    /// The text of an included file.
    pub(crate) file: &'a dyn Fn(&str) -> Option<&'static str>,
    /// Whether a feature is there; `None` when no feature has this name.
    pub(crate) feature: &'a dyn Fn(&str) -> Option<bool>,
    /// The value of a constant.
    pub(crate) constant: &'a dyn Fn(&str) -> Option<u32>,
}

/// Most lines that one shader may have: a mistake in nested repeats is an error, not a hang.
const MOST_LINES: usize = 20_000;

/// Carries out the directives of `text`.
pub(crate) fn expand(context: &Context<'_>, text: &str) -> Result<String, SourceError> {
    let mut state = Expander {
        context,
        included: BTreeSet::new(),
        out: Vec::new(),
    };
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    state.block(&lines)?;
    Ok(state.out.join("\n") + "\n")
}

struct Expander<'a> {
    context: &'a Context<'a>,
    included: BTreeSet<String>,
    out: Vec<String>,
}

impl Expander<'_> {
    fn wrong(&self, line: &str, why: &'static str) -> SourceError {
        SourceError::Directive {
            kernel: self.context.kernel,
            line: line.trim().to_owned(),
            why,
        }
    }

    fn block(&mut self, lines: &[String]) -> Result<(), SourceError> {
        let mut at = 0;
        while at < lines.len() {
            let line = &lines[at];
            at += 1;
            let Some(directive) = line.trim().strip_prefix("//#") else {
                self.push(line)?;
                continue;
            };
            let words: Vec<&str> = directive.split_whitespace().collect();
            match words[..] {
                ["include", name] => self.include(name)?,
                ["if", name] => {
                    let there = (self.context.feature)(name)
                        .ok_or_else(|| self.wrong(line, "no such feature"))?;
                    let (middle, end) = self.ends(lines, at, line)?;
                    let (yes, no) = match middle {
                        Some(m) => (at..m, m + 1..end),
                        None => (at..end, end..end),
                    };
                    self.block(&lines[if there { yes } else { no }])?;
                    at = end + 1;
                }
                ["repeat", variable, count] => {
                    let n = count
                        .parse()
                        .ok()
                        .or_else(|| (self.context.constant)(count))
                        .ok_or_else(|| self.wrong(line, "no such constant"))?;
                    let (middle, end) = self.ends(lines, at, line)?;
                    if middle.is_some() {
                        return Err(self.wrong(line, "a repeat has no else"));
                    }
                    for i in 0..n {
                        let (from, to) = (format!("${variable}"), i.to_string());
                        let body: Vec<String> = lines[at..end]
                            .iter()
                            .map(|l| l.replace(&from, &to))
                            .collect();
                        self.block(&body)?;
                    }
                    at = end + 1;
                }
                _ => return Err(self.wrong(line, "no such directive, or nothing to end")),
            }
        }
        Ok(())
    }

    fn push(&mut self, line: &str) -> Result<(), SourceError> {
        if self.out.len() == MOST_LINES {
            return Err(self.wrong(line, "the shader grows beyond reason"));
        }
        self.out.push(line.to_owned());
        Ok(())
    }

    fn include(&mut self, name: &str) -> Result<(), SourceError> {
        if !self.included.insert(name.to_owned()) {
            return Ok(());
        }
        let text = (self.context.file)(name).ok_or_else(|| SourceError::NoFile {
            kernel: self.context.kernel,
            file: name.to_owned(),
        })?;
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        self.block(&lines)
    }

    /// Where the directive that was opened before `from` has its `else`, if any, and its `end`.
    fn ends(
        &self,
        lines: &[String],
        from: usize,
        opener: &str,
    ) -> Result<(Option<usize>, usize), SourceError> {
        let (mut depth, mut middle) = (0, None);
        for (i, line) in lines.iter().enumerate().skip(from) {
            let Some(directive) = line.trim().strip_prefix("//#") else {
                continue;
            };
            match directive.split_whitespace().next() {
                Some("if" | "repeat") => depth += 1,
                Some("else") if depth == 0 => middle = Some(i),
                Some("end") if depth == 0 => return Ok((middle, i)),
                Some("end") => depth -= 1,
                _ => {}
            }
        }
        Err(self.wrong(opener, "it has no end"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str) -> Result<String, SourceError> {
        expand(
            &Context {
                kernel: "test",
                file: &|name| (name == "a").then_some("in a\n//#include a"),
                feature: &|name| match name {
                    "yes" => Some(true),
                    "no" => Some(false),
                    _ => None,
                },
                constant: &|name| (name == "N").then_some(3),
            },
            text,
        )
    }

    #[test]
    fn directives_do_what_the_table_says() {
        let text = "//#include a\n//#include a\n//#if yes\n1\n//#else\n2\n//#end\n//#if no\n3\n//#end\n\
                    //#repeat i 2\n//#repeat j N\nx$i_$j\n//#end\n//#end\nlast";
        let want = "in a\n1\nx0_0\nx0_1\nx0_2\nx1_0\nx1_1\nx1_2\nlast\n";
        assert_eq!(run(text).unwrap(), want);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, why) in [
            ("//#include b", "no file `b`"),
            ("//#if maybe\n//#end", "no such feature"),
            ("//#if yes\n", "no end"),
            ("//#repeat i M\n//#end", "no such constant"),
            ("//#repeat i 2\n//#else\n//#end", "no else"),
            ("//#end", "nothing to end"),
            ("//#frobnicate", "no such directive"),
        ] {
            let error = run(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
        let deep = "//#repeat i 300\n//#repeat j 300\nx\n//#end\n//#end";
        assert!(run(deep).unwrap_err().to_string().contains("reason"));
    }
}
