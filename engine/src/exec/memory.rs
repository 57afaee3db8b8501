//! How much of the processor's memory can be had.

use std::path::Path;

/// Bytes that can be had without swapping, as Linux estimates them, and within the limit of this process's
/// control group (a container's, say); `None` where nobody tells.
pub(super) fn available() -> Option<usize> {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let all = read(Path::new("/proc/meminfo")).and_then(|text| of_machine(&text));
    let group = read(Path::new("/proc/self/cgroup"));
    let group = group.and_then(|text| of_groups(&text, &read));
    all.into_iter().chain(group).min()
}

/// `MemAvailable` of a `/proc/meminfo`, in bytes.
fn of_machine(meminfo: &str) -> Option<usize> {
    let kib: usize = field(meminfo, "MemAvailable:")?
        .strip_suffix("kB")?
        .trim()
        .parse()
        .ok()?;
    kib.checked_mul(1024)
}

/// What the limits of the control group in a `/proc/self/cgroup`, and of those around it, leave (version 2 of
/// them): what is held of files on disks can be taken back. `read` gives the text of a file.
fn of_groups(own: &str, read: &dyn Fn(&Path) -> Option<String>) -> Option<usize> {
    let own = field(own, "0::")?.trim_start_matches('/');
    let root = Path::new("/sys/fs/cgroup");
    let left = |group: &Path| {
        let number = |name: &str| read(&group.join(name))?.trim().parse::<usize>().ok();
        let limits = ["memory.max", "memory.high"].into_iter().filter_map(number);
        let (limit, used) = (limits.min()?, number("memory.current")?);
        let stat = read(&group.join("memory.stat")).unwrap_or_default();
        let files = ["active_file ", "inactive_file "]
            .into_iter()
            .filter_map(|name| field(&stat, name)?.parse().ok())
            .fold(0, usize::saturating_add);
        Some(limit.saturating_sub(used.saturating_sub(files)))
    };
    let around = root.join(own);
    let groups = around.ancestors().take_while(|g| g.starts_with(root));
    groups.filter_map(left).min()
}

/// What follows `name` at the beginning of a line.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_from_meminfo() {
        let text = "MemTotal:  9 kB\nMemFree: 1 kB\nMemAvailable:    3000000 kB\nBuffers: 2 kB\n";
        assert_eq!(of_machine(text), Some(3_072_000_000));
        assert_eq!(of_machine("MemTotal: 9 kB\n"), None);
        assert_eq!(of_machine("MemAvailable: many kB\n"), None);
    }

    #[test]
    fn the_tightest_group_counts_and_files_in_it_do_not() {
        let read = |path: &Path| {
            let text = match path.to_str()? {
                "/sys/fs/cgroup/a/b/memory.max" => "1000\n",
                "/sys/fs/cgroup/a/b/memory.current" => "700\n",
                "/sys/fs/cgroup/a/b/memory.stat" => {
                    "anon 1\nfile 700\nshmem 100\ninactive_file 400\nactive_file 200\n"
                }
                "/sys/fs/cgroup/a/memory.max" => "900\n",
                "/sys/fs/cgroup/a/memory.high" => "800\n",
                "/sys/fs/cgroup/a/memory.current" => "750\n",
                "/sys/fs/cgroup/a/b/memory.high" | "/sys/fs/cgroup/memory.max" => "max\n",
                _ => return None,
            };
            Some(text.to_owned())
        };
        assert_eq!(of_groups("0::/a/b\n", &read), Some(50));
        assert_eq!(of_groups("0::/\n", &read), None);
        assert_eq!(of_groups("1:memory:/a/b\n", &read), None);
        assert_eq!(of_groups("0::/a/b/c\n", &read), Some(50));
        let alone = |path: &Path| read(path).filter(|_| path.starts_with("/sys/fs/cgroup/a/b"));
        assert_eq!(of_groups("0::/a/b\n", &alone), Some(900));
    }
}
