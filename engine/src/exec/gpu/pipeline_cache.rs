//! Compiled pipelines, kept on disk between runs where the driver can.

use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Largest cache that is read back.
const MOST: u64 = 256 << 20;

/// The folder for caches of this user's programs.
fn folder() -> Option<PathBuf> {
    let set = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
    };
    let base = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(base.join("splitconv").join("pipelines"))
}

/// The driver's cache for `info`, filled with what an earlier run left.
pub(super) fn open(
    device: &wgpu::Device,
    info: &wgpu::AdapterInfo,
) -> Option<(wgpu::PipelineCache, PathBuf)> {
    let key = wgpu::util::pipeline_cache_key(info)?;
    // Another version of this program has other shaders.
    let path = folder()?.join(format!("{key}-{}", env!("CARGO_PKG_VERSION")));
    let small = std::fs::metadata(&path).is_ok_and(|m| m.len() <= MOST);
    let data = if small {
        std::fs::read(&path).ok()
    } else {
        None
    };
    // SAFETY: the file was written by `save` under the key of this adapter and driver, into a
    // folder of the user's own; wgpu checks its header and the driver the rest, and `fallback`
    // starts an empty one when they refuse.
    let cache = unsafe {
        device.create_pipeline_cache(&wgpu::PipelineCacheDescriptor {
            label: Some("splitrun"),
            data: data.as_deref(),
            fallback: true,
        })
    };
    Some((cache, path))
}

/// Writes the cache; a cache that cannot be written is only slower next time.
pub(super) fn save(cache: &wgpu::PipelineCache, path: &Path) {
    let Some(data) = cache.get_data() else { return };
    let write = || -> std::io::Result<()> {
        if std::fs::metadata(path).is_ok_and(|m| m.len() == data.len() as u64) {
            return Ok(());
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        // Whole or not at all: another process may read it at any time.
        let part = path.with_extension(format!("{}.partial", std::process::id()));
        let mut file = std::fs::File::create(&part)?;
        file.write_all(&data)?;
        std::fs::rename(&part, path)
    };
    if let Err(e) = write() {
        tracing::debug!("compiled pipelines were not kept: {e}");
    }
}
