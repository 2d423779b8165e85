//! Where images are written, by the suffix of `--out`: one PNG (a sheet), a folder of PNGs, or
//! ADM's `.npz`.
//!
//! Each is written completely or not at all; a signal that asks to stop leaves nothing. The folder
//! and the `.npz` are written as images arrive.

use std::io::{Seek, Write};
use std::path::{Path, PathBuf};

use ::image::RgbImage;

use super::grid::{Layout, Scale, grid, save_png};
use crate::error::{Result, hinted, usage};
use crate::interrupt::Interrupt;
use crate::store::atomic;
use crate::store::npz::{Element, NpzWriter};

/// Suffixes of files that cannot be written here: a path with one of these is not meant as a
/// folder.
const OTHER_FILES: [&str; 33] = [
    "jpg",
    "jpeg",
    "jpe",
    "jfif",
    "gif",
    "webp",
    "bmp",
    "tif",
    "tiff",
    "ppm",
    "avif",
    "heic",
    "svg",
    "pdf",
    "mp4",
    "webm",
    "npy",
    "pt",
    "pth",
    "ckpt",
    "safetensors",
    "h5",
    "zip",
    "tar",
    "gz",
    "tgz",
    "json",
    "jsonl",
    "txt",
    "csv",
    "html",
    "toml",
    "yaml",
];

/// The kind of output that a path's suffix selects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// `.png`: all pictures on one sheet.
    Grid(PathBuf, Scale),
    /// No file suffix: one PNG per picture, named `indexCLASS-NUMBER.png`.
    Folder(PathBuf),
    /// `.npz`: `arr_0` u8 [N,H,W,3], `arr_1` i64 [N], the classes' indices, as the archive's
    /// comment says.
    Npz(PathBuf),
}

/// One picture to write: one or more images side by side.
#[derive(Debug, Clone)]
pub struct Picture {
    /// Images side by side: one, a pair, or a strip.
    pub images: Vec<RgbImage>,
    /// The index of its class.
    pub label: u32,
    pub number: u64,
}

/// The number and size of the pictures to write.
#[derive(Debug, Clone, Copy)]
pub struct Pictures {
    pub count: usize,
    /// Size of an image.
    pub width: usize,
    pub height: usize,
    /// Pictures per row of a sheet.
    pub columns: usize,
    /// Images per picture.
    pub beside: usize,
}

/// Receives one picture after the other.
pub type Put<'a> = dyn FnMut(Picture) -> Result<()> + 'a;

impl Output {
    /// By the suffix, ignoring case. A path that ends in a slash, or is an existing folder, is a
    /// folder. `run-1.5` is one too: not every dot in a name starts a file suffix.
    ///
    /// Errors: the suffix of another kind of file; a folder that is not empty, or a path that is
    /// not a folder; a `scale` for anything but a sheet.
    pub fn from_path(path: &Path, scale: Scale) -> Result<Self> {
        atomic::sweep_beside(path);
        let ending = path
            .extension()
            .map(|e| e.to_string_lossy().to_ascii_lowercase());
        let slash = path.as_os_str().as_encoded_bytes().ends_with(b"/");
        let ending = ending.filter(|_| !slash && !path.is_dir());
        let output = match ending.as_deref() {
            Some("png") => Ok(Output::Grid(path.to_path_buf(), scale)),
            Some("npz") => Ok(Output::Npz(path.to_path_buf())),
            Some(other) if OTHER_FILES.contains(&other) => Err(usage(
                format!("--out {}: no output of kind `.{other}`", path.display()),
                ".png is one sheet, .npz an array file, any other name a folder of PNGs",
            )),
            _ => {
                let occupied = std::fs::read_dir(path).is_ok_and(|mut d| d.next().is_some());
                if occupied || (path.exists() && !path.is_dir()) {
                    return Err(hinted(
                        format!("{} exists already", path.display()),
                        "choose another --out, or remove it",
                    ));
                }
                Ok(Output::Folder(path.to_path_buf()))
            }
        }?;
        match (scale, &output) {
            (Scale::Auto, _) | (_, Output::Grid(..)) => Ok(output),
            (Scale::Times(_), _) => Err(usage(
                format!("--scale {scale}: {} is not a sheet", path.display()),
                "only a sheet (.png) is enlarged; folders and .npz hold images as they are",
            )),
        }
    }

    pub fn path(&self) -> &Path {
        match self {
            Output::Grid(path, _) | Output::Folder(path) | Output::Npz(path) => path,
        }
    }

    /// Writes the pictures that `produce` puts.
    ///
    /// Errors: any error of `produce`; a sheet that would be too large; a signal that asks to stop,
    /// after which nothing is written.
    pub fn write(
        &self,
        pictures: Pictures,
        produce: impl FnOnce(&mut Put) -> Result<()>,
    ) -> Result<()> {
        let interrupt = Interrupt::listen()?;
        let (mut done, count) = (0, pictures.count);
        self.write_all(pictures, |put| {
            produce(&mut |picture| {
                interrupt.check(
                    || format!("after {done} of {count} images"),
                    || {
                        let out = self.path().display();
                        format!(
                            "nothing was written to {out}; the same command starts from scratch"
                        )
                    },
                )?;
                done += 1;
                put(picture)
            })
        })
    }

    /// Like [`Output::write`], where `produce` itself looks for signals.
    pub fn write_all(
        &self,
        pictures: Pictures,
        produce: impl FnOnce(&mut Put) -> Result<()>,
    ) -> Result<()> {
        let Pictures {
            count,
            width,
            height,
            columns,
            beside,
        } = pictures;
        match self {
            Output::Grid(path, scale) => {
                // Before its images are made: a sheet that is too large, or cannot be written.
                let side = (width as u32, height as u32);
                Layout::new(count * beside, side, columns * beside, *scale)?;
                atomic::check_writable(path)?;
                let mut images = Vec::with_capacity(count * beside);
                produce(&mut |p| {
                    images.extend(p.images);
                    Ok(())
                })?;
                save_png(&grid(&images, columns * beside, *scale)?, path)
            }
            Output::Folder(path) => atomic::write_folder(path, |folder| {
                produce(&mut |p| {
                    let picture = grid(&p.images, p.images.len(), Scale::Times(1))?;
                    save_png(&picture, &folder.join(file_name(p.label, p.number)))
                })
            }),
            Output::Npz(path) => atomic::write_with(path, |file| {
                write_npz(file, [count, height, width, 3], produce)
            }),
        }
    }
}

fn write_npz(
    file: impl Write + Seek,
    shape: [usize; 4],
    produce: impl FnOnce(&mut Put) -> Result<()>,
) -> Result<()> {
    let mut npz = NpzWriter::new(file);
    npz.array("arr_0", Element::U8, &shape)?;
    let mut labels = Vec::with_capacity(shape[0] * 8);
    produce(&mut |p| {
        labels.extend(i64::from(p.label).to_le_bytes());
        p.images
            .iter()
            .try_for_each(|image| npz.write(image.as_raw()))
    })?;
    npz.array("arr_1", Element::I64, &shape[..1])?;
    npz.write(&labels)?;
    npz.comment("arr_1: the index of each image's class in the model, from 0")?;
    npz.finish()?;
    Ok(())
}

fn file_name(label: u32, number: u64) -> String {
    format!("index{label:04}-{number:06}.png")
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use super::*;
    use crate::error::report;

    const THREE: Pictures = Pictures {
        count: 3,
        width: 4,
        height: 4,
        columns: 2,
        beside: 1,
    };

    fn output(path: &Path) -> Result<Output> {
        Output::from_path(path, Scale::Auto)
    }

    fn put_three(put: &mut Put) -> Result<()> {
        for number in 0..3u64 {
            put(Picture {
                images: vec![RgbImage::from_pixel(4, 4, ::image::Rgb([number as u8; 3]))],
                label: 10 + number as u32,
                number,
            })?;
        }
        Ok(())
    }

    #[test]
    fn the_ending_decides_what_is_written() -> Result<()> {
        let root = tempfile::tempdir()?;
        for name in ["a.png", "folder", "a.npz"] {
            output(&root.path().join(name))?.write(THREE, put_three)?;
        }
        let sheet = ::image::open(root.path().join("a.png"))?.into_rgb8();
        // Enlarged 32 times.
        assert_eq!(sheet.dimensions(), (258, 258));
        let one = ::image::open(root.path().join("folder/index0012-000002.png"))?.into_rgb8();
        assert_eq!(one.as_raw(), &[2; 48]);
        let mut npz = zip::ZipArchive::new(File::open(root.path().join("a.npz"))?)?;
        assert_eq!(npz.by_name("arr_0.npy")?.size(), 128 + 3 * 48);
        assert!(npz.comment().starts_with(b"arr_1: the index of"));
        let mut labels = Vec::new();
        npz.by_name("arr_1.npy")?.read_to_end(&mut labels)?;
        let expected: Vec<u8> = [10i64, 11, 12]
            .iter()
            .flat_map(|l| l.to_le_bytes())
            .collect();
        assert_eq!(labels[128..], expected);
        for other in ["a.jpg", "a.JPEG", "a.npy", "a.tar"] {
            let error = output(&root.path().join(other)).unwrap_err();
            assert_eq!(report(&error).1, 2);
        }
        Ok(())
    }

    #[test]
    fn only_a_sheet_is_enlarged() -> Result<()> {
        let root = tempfile::tempdir()?;
        let at = |name: &str| root.path().join(name);
        let pairs = |put: &mut Put| {
            for number in 0..2 {
                let image = |value| RgbImage::from_pixel(4, 4, ::image::Rgb([value; 3]));
                put(Picture {
                    images: vec![image(0), image(100)],
                    label: 0,
                    number,
                })?;
            }
            Ok(())
        };
        let two = Pictures {
            count: 2,
            beside: 2,
            ..THREE
        };
        let sides = |name: &str| ::image::image_dimensions(at(name));
        Output::from_path(&at("a.png"), Scale::Times(3))?.write(two, pairs)?;
        assert_eq!(sides("a.png")?, (4 * 12 + 3 * 2, 12));
        Output::from_path(&at("b.png"), Scale::Times(1))?.write(two, pairs)?;
        assert_eq!(sides("b.png")?, (4 * 4 + 3 * 2, 4));
        output(&at("pairs"))?.write(two, pairs)?;
        assert_eq!(sides("pairs/index0000-000001.png")?, (4 + 2 + 4, 4));
        for other in ["a.npz", "folder"] {
            let error = Output::from_path(&at(other), Scale::Times(2)).unwrap_err();
            let (text, code) = report(&error);
            assert!(text.contains("--scale 2: ") && code == 2, "{text}");
        }
        Ok(())
    }

    #[test]
    fn a_sheet_that_is_too_large_is_refused_before_its_images_are_made() -> Result<()> {
        let root = tempfile::tempdir()?;
        let output = Output::from_path(&root.path().join("a.png"), Scale::Times(64))?;
        let many = Pictures {
            count: 1_000_000,
            columns: 1000,
            ..THREE
        };
        let mut asked = false;
        let error = output.write(many, |_| {
            asked = true;
            Ok(())
        });
        assert!(report(&error.unwrap_err()).0.contains("--scale"));
        assert!(!asked);
        Ok(())
    }

    #[test]
    fn an_output_that_cannot_be_written_is_refused_before_its_images_are_made() -> Result<()> {
        let root = tempfile::tempdir()?;
        for name in ["a.png", "a.npz", "folder"] {
            let output = output(&root.path().join("none").join(name))?;
            let mut asked = false;
            let error = output.write(THREE, |put| {
                asked = true;
                put_three(put)
            });
            let (text, _) = report(&error.unwrap_err());
            assert!(text.contains("make its folder first"), "{name}: {text}");
            assert!(!asked, "{name}");
        }
        Ok(())
    }

    #[test]
    fn a_dot_in_a_name_makes_no_file_of_a_folder() -> Result<()> {
        let root = tempfile::tempdir()?;
        let at = |name: &str| root.path().join(name);
        std::fs::create_dir(at("there.png"))?;
        for name in [
            "run-1.5",
            "samples.v2",
            "a.b.c",
            "step.00000200",
            "there.png",
            "new.png/",
            ".hidden",
        ] {
            let folder = output(&at(name))?;
            assert!(matches!(folder, Output::Folder(_)), "{name}: {folder:?}");
            folder.write(THREE, put_three)?;
            assert!(at(name).join("index0012-000002.png").is_file(), "{name}");
        }
        assert!(matches!(output(&at("A.PNG"))?, Output::Grid(..)));
        assert!(matches!(output(&at("A.NPZ"))?, Output::Npz(_)));
        Ok(())
    }

    #[test]
    fn the_next_output_sweeps_what_a_killed_one_left() -> Result<()> {
        let root = tempfile::tempdir()?;
        let at = |name: &str| root.path().join(name);
        std::fs::write(at(".x.npz.partial"), "half")?;
        std::fs::create_dir(at(".folder.partial"))?;
        output(&at("y.npz"))?;
        assert_eq!(std::fs::read_dir(root.path())?.count(), 0);
        Ok(())
    }

    #[test]
    fn an_input_that_cannot_be_read_is_not_called_an_output_that_cannot_be_written() -> Result<()> {
        use crate::error::Context;
        let root = tempfile::tempdir()?;
        let failed = output(&root.path().join("a.npz"))?.write(THREE, |_| {
            std::fs::read("no/such.png").context("could not read no/such.png")?;
            Ok(())
        });
        let (text, _) = report(&failed.unwrap_err());
        assert!(
            text.starts_with("error: could not read no/such.png"),
            "{text}"
        );
        Ok(())
    }

    #[test]
    fn what_stands_there_stays_when_the_work_fails() -> Result<()> {
        let root = tempfile::tempdir()?;
        let path = root.path().join("a.npz");
        std::fs::write(&path, "before")?;
        let failed = output(&path)?.write(THREE, |put| {
            put_three(put)?;
            Err(hinted("no more", "the hint"))
        });
        assert_eq!(
            report(&failed.unwrap_err()).0,
            "error: no more\nhint: the hint"
        );
        assert_eq!(std::fs::read(&path)?, b"before");
        Ok(())
    }

    #[test]
    fn a_folder_that_holds_something_is_not_replaced() -> Result<()> {
        let root = tempfile::tempdir()?;
        let folder = root.path().join("samples");
        std::fs::create_dir(&folder)?;
        output(&folder)?;
        std::fs::write(folder.join("x"), "")?;
        // A device such as /dev/null would be replaced.
        let socket = root.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket)?;
        for path in [folder, socket] {
            let error = output(&path).unwrap_err();
            assert!(report(&error).0.contains("choose another --out"));
        }
        Ok(())
    }
}
