//! The rules of the house that no other tool checks.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::Failure;

/// Lines a source file may have.
const MAX_LINES: usize = 600;

/// Checks every Rust, protocol and shader file under `root`.
pub(crate) fn check_lengths(root: &Path) -> Result<(), Failure> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        visit(&folder, &mut folders, &mut files)?;
    }
    files.sort();
    if files.is_empty() {
        return Ok(());
    }
    let relative = |p: &Path| p.strip_prefix(root).unwrap_or(p).display().to_string();
    Err(Failure::TooLong {
        limit: MAX_LINES,
        files: files
            .iter()
            .map(|(path, n)| format!("{}: {n}", relative(path)))
            .collect(),
    })
}

fn visit(
    folder: &Path,
    folders: &mut Vec<PathBuf>,
    long: &mut Vec<(PathBuf, usize)>,
) -> Result<(), Failure> {
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |source| Failure::File { path, source }
    };
    for entry in fs::read_dir(folder).map_err(fail(folder))? {
        let entry = entry.map_err(fail(folder))?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(fail(folder))?);
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if kind.is_dir() {
            if name != "target" && !name.starts_with('.') {
                folders.push(path);
            }
            continue;
        }
        let source = path.extension().and_then(|e| e.to_str());
        if matches!(source, Some("rs" | "proto" | "wgsl")) {
            let text = fs::read_to_string(&path).map_err(fail(&path))?;
            let lines = text.lines().count();
            if lines > MAX_LINES {
                long.push((path, lines));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_files_are_found() {
        let root = std::env::temp_dir().join(format!("xtask-lengths-{}", std::process::id()));
        fs::create_dir_all(root.join("a/target")).unwrap();
        fs::write(root.join("a/short.rs"), "x\n".repeat(MAX_LINES)).unwrap();
        fs::write(root.join("a/target/built.rs"), "x\n".repeat(5000)).unwrap();
        fs::write(root.join("a/text.md"), "x\n".repeat(5000)).unwrap();
        let good = check_lengths(&root);
        fs::write(root.join("a/long.rs"), "x\n".repeat(MAX_LINES + 1)).unwrap();
        let bad = check_lengths(&root);
        fs::remove_dir_all(&root).unwrap();
        good.unwrap();
        let text = bad.unwrap_err().to_string();
        assert!(text.contains("long.rs: 601"), "{text}");
    }
}
