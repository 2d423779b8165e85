//! Where a network's weights are: a file that was named, or the cache folder `~/.cache/rdpm/weights`.

use std::path::PathBuf;

use crate::error::{Result, hinted, usage};

/// The networks that evaluation reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    Inception,
    Vgg16,
    LpipsHeads,
    DinoV2,
    Clip,
}

impl Network {
    /// Names under which the cache folder may hold it.
    fn names(self) -> &'static [&'static str] {
        match self {
            Network::Inception => &[
                "pt_inception-2015-12-05-6726825d.pth",
                "fid_inception.safetensors",
            ],
            Network::Vgg16 => &[
                "vgg16-397923af.pth",
                "vgg16_features_f32.safetensors",
                "vgg16_features_f16.safetensors",
            ],
            Network::LpipsHeads => &["lpips_vgg_lin.safetensors"],
            Network::DinoV2 => &["dinov2_vitl14_pretrain.pth"],
            Network::Clip => &["clip-vit-base-patch32.safetensors"],
        }
    }
}

/// The weights file of `network`: `asked` (a path, an address, `hf://owner/repo/file`), else the cache folder's, else,
/// if `download`, the address that its authors publish.
///
/// Errors: there is none; the hint says what to fetch and where to put it.
pub fn locate(network: Network, asked: Option<&str>, download: bool) -> Result<PathBuf> {
    if let Some(asked) = asked {
        let path = PathBuf::from(asked);
        if path.is_file() {
            return Ok(path);
        }
        return Err(usage(format!("there is no weights file {asked}"), ""));
    }
    let folder = cache()?;
    let found = network.names().iter().map(|name| folder.join(name));
    match found.into_iter().find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => Err(hinted(
            format!("{network:?}: no weights in {}", folder.display()),
            format!(
                "put {} there{}",
                network.names()[0],
                if download { "" } else { ", or name a file" }
            ),
        )),
    }
}

/// `$XDG_CACHE_HOME/rdpm/weights`, else `~/.cache/rdpm/weights`.
fn cache() -> Result<PathBuf> {
    let root = match std::env::var_os("XDG_CACHE_HOME").filter(|p| !p.is_empty()) {
        Some(root) => PathBuf::from(root),
        None => match std::env::var_os("HOME").filter(|p| !p.is_empty()) {
            Some(home) => PathBuf::from(home).join(".cache"),
            None => return Err(hinted("neither XDG_CACHE_HOME nor HOME is set", "")),
        },
    };
    Ok(root.join("rdpm/weights"))
}
