//! A folder of images: the class of an image is the sub-folder it lies in, at any depth below it.
//!
//! A folder of images without sub-folders is one set without labels. Hidden files and files that are no images are
//! passed over; links are followed.

use std::path::Path;

use super::image_kind::{ENDINGS, is_image_name};
use super::part::{ClassName, Found, Part, Place};
use crate::error::{Context, Result, hinted};

/// Finds the images of the folder `root`, sorted by name within every folder.
pub(super) fn scan(root: &Path) -> Result<Part> {
    let mut part = Part::new(root.to_path_buf());
    let top = list(root)?;
    for file in &top.images {
        part.found.push(found(file, None));
    }
    for folder in &top.folders {
        let before = part.found.len();
        walk(root, folder, folder, &mut part)?;
        if part.found.len() == before {
            part.empty_classes.push(folder.clone());
        }
    }
    let loose = top.images.len();
    if loose > 0 && part.found.len() > loose {
        return Err(hinted(
            format!(
                "{}: {loose} images (`{}`, ...) lie beside class folders (`{}`, ...)",
                root.display(),
                top.images[0],
                top.folders[0]
            ),
            "move them into a class folder, or name the folders with labels and those without separately",
        ));
    }
    if part.found.is_empty() {
        let hint = match list_shards(root)?.first() {
            Some(shard) => format!(
                "it holds tar shards (`{shard}`, ...): name them, for example as '{}/*.tar*'",
                root.display()
            ),
            None => {
                format!("images end in {ENDINGS}, and lie in one folder a class")
            }
        };
        return Err(hinted(
            format!("{}: no images in this folder", root.display()),
            hint,
        ));
    }
    Ok(part)
}

struct Listing {
    images: Vec<String>,
    folders: Vec<String>,
}

/// The images and folders in `folder`, sorted.
fn list(folder: &Path) -> Result<Listing> {
    let context = || format!("could not list the folder {}", folder.display());
    let (mut images, mut folders) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(folder).with_context(context)? {
        let entry = entry.with_context(context)?;
        let name = entry.file_name().into_string().map_err(|name| {
            let path = folder.join(name);
            hinted(
                format!("{}: the name is not UTF-8", path.display()),
                "rename it",
            )
        })?;
        if name.starts_with('.') {
            continue;
        }
        let kind = entry.file_type().with_context(context)?;
        // A pipe or a device would keep its reader waiting.
        let (is_folder, is_file) = match kind.is_symlink() {
            true => (
                is_folder_behind(&entry.path())?,
                is_file_behind(&entry.path()),
            ),
            false => (kind.is_dir(), kind.is_file()),
        };
        if is_folder {
            folders.push(name);
        } else if is_image_name(&name) && is_file {
            images.push(name);
        }
    }
    images.sort();
    folders.sort();
    Ok(Listing { images, folders })
}

/// Whether a link leads to a file, or nowhere, which is for the reader to report.
fn is_file_behind(link: &Path) -> bool {
    std::fs::metadata(link).map_or(true, |target| target.is_file())
}

/// Whether a link leads to a folder; one that leads back to a folder around it would be walked for ever.
fn is_folder_behind(link: &Path) -> Result<bool> {
    let target = link
        .canonicalize()
        .with_context(|| format!("{}: a broken link", link.display()))?;
    let around = link.parent().map(Path::canonicalize).transpose()?;
    if around.is_some_and(|around| around.starts_with(&target)) {
        return Err(hinted(
            format!(
                "{}: the link leads back to {}",
                link.display(),
                target.display()
            ),
            "remove the link",
        ));
    }
    Ok(target.is_dir())
}

/// Adds all images below `root`/`folder`.
fn walk(root: &Path, folder: &str, class: &str, part: &mut Part) -> Result<()> {
    let inner = list(&root.join(folder))?;
    for file in inner.images {
        let name = ClassName::Name(class.to_string());
        part.found
            .push(found(&format!("{folder}/{file}"), Some(name)));
    }
    for inner in inner.folders {
        walk(root, &format!("{folder}/{inner}"), class, part)?;
    }
    Ok(())
}

fn found(name: &str, class: Option<ClassName>) -> Found {
    Found {
        name: name.to_string(),
        class,
        place: Place::File,
    }
}

fn list_shards(root: &Path) -> Result<Vec<String>> {
    let mut shards: Vec<String> = std::fs::read_dir(root)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| super::shards::is_shard_name(name))
        .collect();
    shards.sort();
    Ok(shards)
}
