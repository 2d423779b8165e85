//! README and docs, as far as tests read them: fenced blocks, the commands in them, and code in
//! running text.

use std::fs;
use std::path::Path;

/// A page and its text.
pub struct Page {
    pub name: String,
    pub text: String,
}

/// A fenced block.
pub struct Block<'a> {
    pub language: &'a str,
    pub text: String,
}

/// README first, then all pages of docs by name.
pub fn pages() -> Vec<Page> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = fs::read_dir(root.join("docs")).expect("a folder");
    let names = docs.map(|entry| entry.expect("a file").file_name().into_string());
    let mut names: Vec<String> = names
        .map(|name| format!("docs/{}", name.expect("UTF-8")))
        .filter(|name| name.ends_with(".md"))
        .collect();
    names.sort();
    names.insert(0, "README.md".to_string());
    let read = |name: String| Page {
        text: fs::read_to_string(root.join(&name)).expect("a page"),
        name,
    };
    names.into_iter().map(read).collect()
}

impl Page {
    pub fn blocks(&self) -> Vec<Block<'_>> {
        let mut blocks = Vec::new();
        let mut open: Option<Block> = None;
        for line in self.text.lines() {
            match (line.strip_prefix("```"), &mut open) {
                (Some(language), None) => {
                    let text = String::new();
                    open = Some(Block { language, text });
                }
                (Some(_), Some(_)) => blocks.extend(open.take()),
                (None, Some(block)) => {
                    block.text.push_str(line);
                    block.text.push('\n');
                }
                (None, None) => {}
            }
        }
        assert!(open.is_none(), "{}: a fence is not closed", self.name);
        blocks
    }

    /// Code between backticks in running text.
    pub fn inline_code(&self) -> Vec<String> {
        let mut fenced = false;
        let outside = self.text.lines().filter(|line| {
            let fence = line.starts_with("```");
            fenced ^= fence;
            !fence && !fenced
        });
        let text = outside.collect::<Vec<_>>().join(" ");
        let code = text.split('`').skip(1).step_by(2);
        code.map(str::to_string).collect()
    }
}

impl Block<'_> {
    /// The lines of a block of commands; a line that ends in a backslash is joined with the next.
    pub fn commands(&self) -> Vec<String> {
        let mut commands = Vec::new();
        let mut command = String::new();
        for line in self.text.lines() {
            command.push_str(line);
            if line.ends_with('\\') {
                command.push('\n');
            } else if !command.trim().is_empty() {
                commands.push(std::mem::take(&mut command));
            }
        }
        assert!(command.is_empty(), "{command} goes on");
        commands
    }
}
