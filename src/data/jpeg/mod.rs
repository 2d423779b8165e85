//! JPEG to RGB (ITU-T T.81): every 8-bit kind that libjpeg-turbo decodes, with bit-identical
//! pixels.
//!
//! The reference is Pillow 13.0.0 with libjpeg-turbo 3.2.0, `Image.open(f).convert("RGB")`: the
//! accurate integer inverse DCT, "fancy" upsampling, smoothing of progressive files that end early,
//! colours determined by JFIF and Adobe markers and component ids, CMYK taken as inverted.
//! `scripts/jpeg_corpus.py` makes the test files.
//!
//! | coding | scans | file |
//! | --- | --- | --- |
//! | Huffman, SOF0 and SOF1 | interleaved or apart | `sequential.rs` |
//! | Huffman progressive, SOF2 | any script | `progressive.rs` |
//! | arithmetic, SOF9 and SOF10 | the same | `arithmetic.rs` |
//! | lossless Huffman, SOF3 | the same | `lossless.rs` |
//!
//! It is stricter than libjpeg in one way: missing or damaged data, which libjpeg fills in with a
//! warning, is an error here. Stray bytes between segments are skipped and counted, because libjpeg
//! warns about them.

mod arithmetic;
mod bits;
mod coefficients;
mod colour;
mod frame;
mod huffman;
mod idct;
mod lossless;
mod markers;
mod progressive;
mod segments;
mod sequential;
mod smoothing;
mod upsample;
mod walk;

#[cfg(test)]
mod tests;

pub use colour::through_black;

use coefficients::Coefficients;
use colour::Colours;
use frame::{Coding, Component, Frame};
use idct::Idct;
use markers::{Marker, Reader};
use segments::{Scan, Tables};
use upsample::Plane;
use walk::Blocks;

/// Why a file cannot be decoded.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Data is missing or contradictory.
    Damaged(String),
    /// A kind that libjpeg-turbo's 8-bit decoder does not support either.
    Unsupported(String),
    /// The size exceeds the caller's limit.
    TooLarge(String),
}

pub type Result<T> = std::result::Result<T, Refusal>;

pub fn damaged<T>(what: impl Into<String>) -> Result<T> {
    Err(Refusal::Damaged(what.into()))
}

pub fn unsupported<T>(what: impl Into<String>) -> Result<T> {
    Err(Refusal::Unsupported(what.into()))
}

/// Maximum number of blocks in all scans: libjpeg's ten scans of the largest image have 39 million.
/// Otherwise a file of few bytes could keep its reader busy for hours; so many take two seconds.
const MAX_UNITS: u64 = 1 << 26;
/// Each scan counts as at least this many.
const MIN_UNITS_PER_SCAN: u64 = 1 << 10;

/// A decoded file.
#[derive(Debug)]
pub struct Picture {
    pub width: usize,
    pub height: usize,
    /// [H,W,3]
    pub rgb: Vec<u8>,
    /// Number of stray bytes between segments.
    pub stray: usize,
}

/// Decodes the first image in `bytes`, up to its end marker; `fits` may refuse a size before
/// anything is allocated. Its scans may take no longer than `scans` scans of the whole image.
pub fn decode(
    bytes: &[u8],
    fits: impl Fn(u32, u32) -> std::result::Result<(), String>,
    scans: u64,
) -> Result<Picture> {
    let mut reader = Reader::new(bytes)?;
    let mut tables = Tables::new();
    let mut colours = Colours::default();
    let mut image: Option<Image> = None;
    let mut frame: Option<Frame> = None;
    loop {
        match reader.marker()? {
            Marker::Frame(code) => {
                if frame.is_some() || image.is_some() {
                    return damaged("it has a second frame header");
                }
                let found = Frame::parse(code, reader.segment()?)?;
                fits(found.width as u32, found.height as u32).map_err(Refusal::TooLarge)?;
                frame = Some(found);
            }
            Marker::QuantizationTables => tables.read_quantization(reader.segment()?)?,
            Marker::HuffmanTables => tables.read_huffman(reader.segment()?)?,
            Marker::Conditioning => tables.read_conditioning(reader.segment()?)?,
            Marker::RestartInterval => tables.read_restart_interval(reader.segment()?)?,
            Marker::Application(number) => colours.read(number, reader.segment()?),
            Marker::Skipped => drop(reader.segment()?),
            Marker::Alone => {}
            Marker::Scan => {
                let image = match (&mut image, frame.take()) {
                    (Some(image), _) => image,
                    (image, Some(frame)) => {
                        image.insert(Image::new(frame, &mut tables, &colours, scans)?)
                    }
                    (None, None) => return damaged("a scan comes before the frame header"),
                };
                image.read_scan(&mut reader, &tables)?;
            }
            Marker::End => break,
        }
    }
    let Some(image) = image else {
        return damaged("it ends before its first scan");
    };
    image.finish(reader.stray)
}

/// The destination of the scans.
enum Store {
    /// Samples, if one scan contains a whole sequential frame, or if the coding is lossless.
    Samples(Vec<Plane>),
    /// Coefficients of all components, until the last scan is read.
    Coefficients(Vec<Coefficients>),
}

impl Store {
    fn samples(frame: &Frame) -> Store {
        let planes = frame.components.iter();
        Store::Samples(planes.map(|c| Plane::new(c, frame.unit())).collect())
    }

    fn coefficients(frame: &Frame) -> Store {
        Store::Coefficients(frame.components.iter().map(Coefficients::new).collect())
    }
}

struct Image {
    frame: Frame,
    space: colour::Space,
    store: Option<Store>,
    /// Number of units in the scans so far.
    units: u64,
    /// And at most.
    most_units: u64,
}

impl Image {
    fn new(frame: Frame, tables: &mut Tables, colours: &Colours, scans: u64) -> Result<Image> {
        upsample::supported(&frame)?;
        let space = colours.space(&frame)?;
        if frame.coding == Coding::Sequential && !frame.arithmetic {
            tables.fill_standard_huffman();
        }
        let a_scan = MIN_UNITS_PER_SCAN + frame.units_of_all();
        Ok(Image {
            frame,
            space,
            store: None,
            units: 0,
            most_units: MAX_UNITS.min(scans.saturating_mul(a_scan)),
        })
    }

    fn read_scan(&mut self, reader: &mut Reader, tables: &Tables) -> Result<()> {
        let Image { frame, store, .. } = self;
        let scan = Scan::parse(reader.segment()?, frame)?;
        self.units += MIN_UNITS_PER_SCAN + frame.units(&scan);
        if frame.coding != Coding::Lossless && self.units > self.most_units {
            return damaged("so many scans that reading them would take too long");
        }
        frame.latch_quantization(&scan, tables)?;
        let sequential = frame.coding == Coding::Sequential;
        let store = match store {
            Some(Store::Samples(_)) if sequential => {
                return damaged("a second scan, though the first one brought everything");
            }
            Some(store) => store,
            store => {
                let at_once = sequential && scan.parts.len() == frame.components.len();
                store.insert(match at_once || frame.coding == Coding::Lossless {
                    true => Store::samples(frame),
                    false => Store::coefficients(frame),
                })
            }
        };
        match (store, frame.coding) {
            (Store::Samples(planes), Coding::Lossless) => {
                lossless::read(frame, &scan, tables, reader, planes)
            }
            (Store::Samples(planes), _) => idct::with_fastest(Direct {
                frame,
                scan: &scan,
                tables,
                reader,
                planes,
            }),
            (Store::Coefficients(blocks), _) if frame.arithmetic => {
                progressive::note(&scan, frame, blocks);
                arithmetic::read(frame, &scan, tables, reader, blocks)
            }
            (Store::Coefficients(blocks), Coding::Progressive) => {
                progressive::note(&scan, frame, blocks);
                progressive::read(frame, &scan, tables, reader, blocks)
            }
            (Store::Coefficients(blocks), _) => {
                sequential::read(frame, &scan, tables, reader, blocks)
            }
        }
    }

    fn finish(self, stray: usize) -> Result<Picture> {
        let Image {
            frame,
            space,
            store,
            ..
        } = self;
        if let Some(c) = frame.components.iter().position(|c| !c.seen) {
            return damaged(format!("truncated, no scan brings component {}", c + 1));
        }
        let planes = match store {
            Some(Store::Samples(planes)) => planes,
            Some(Store::Coefficients(blocks)) => {
                let dc = |of: &Coefficients| of.missing[0] >= 0;
                if frame.coding == Coding::Progressive && !blocks.iter().all(dc) {
                    return damaged("truncated, no scan brings the mean values of a component");
                }
                idct::with_fastest(Inverse {
                    frame: &frame,
                    blocks: &blocks,
                })
            }
            None => return damaged("truncated, it has no scan"),
        };
        let rgb = upsample::to_rgb(&frame, space, &planes);
        Ok(Picture {
            width: frame.width,
            height: frame.height,
            rgb,
            stray,
        })
    }
}

/// A whole sequential frame in one scan: each block becomes samples as soon as it is read.
struct Direct<'a, 'b> {
    frame: &'a Frame,
    scan: &'a Scan,
    tables: &'a Tables,
    reader: &'a mut Reader<'b>,
    planes: &'a mut [Plane],
}

impl idct::WithIdct for Direct<'_, '_> {
    type Output = Result<()>;

    #[inline(always)]
    fn run(self, idct: impl Idct) -> Result<()> {
        let Direct {
            frame,
            scan,
            tables,
            reader,
            planes,
        } = self;
        let mut blocks = Transformed {
            steps: frame.components.iter().map(wrapped_steps).collect(),
            planes,
            idct,
        };
        match frame.arithmetic {
            true => arithmetic::read(frame, scan, tables, reader, &mut blocks),
            false => sequential::read(frame, scan, tables, reader, &mut blocks),
        }
    }
}

struct Transformed<'a, I> {
    planes: &'a mut [Plane],
    steps: Vec<[i16; 64]>,
    idct: I,
}

impl<I: Idct> Blocks for Transformed<'_, I> {
    #[inline(always)]
    fn with(
        &mut self,
        component: usize,
        x: usize,
        y: usize,
        fill: impl FnOnce(&mut [i16; 64]) -> Result<()>,
    ) -> Result<()> {
        let mut block = [0; 64];
        fill(&mut block)?;
        self.planes[component].put(x, y, self.idct.block(&block, &self.steps[component]));
        Ok(())
    }
}

/// Quantization steps as the inverse DCT uses them.
fn wrapped_steps(component: &Component) -> [i16; 64] {
    component.steps().map(|step| step as i16)
}

/// Converts all coefficients to samples.
struct Inverse<'a> {
    frame: &'a Frame,
    blocks: &'a [Coefficients],
}

impl idct::WithIdct for Inverse<'_> {
    type Output = Vec<Plane>;

    #[inline(always)]
    fn run(self, idct: impl Idct) -> Vec<Plane> {
        let Inverse { frame, blocks } = self;
        let smooth = smoothing::applies(frame, blocks);
        let components = frame.components.iter().zip(blocks);
        components
            .map(|(component, of)| {
                let steps = wrapped_steps(component);
                let mut plane = Plane::new(component, frame.unit());
                for y in 0..component.high {
                    for x in 0..component.wide {
                        let samples = match smooth {
                            true => {
                                idct.block(&smoothing::block(frame, component, of, (x, y)), &steps)
                            }
                            false => idct.block(of.block(x, y), &steps),
                        };
                        plane.put(x, y, samples);
                    }
                }
                plane
            })
            .collect()
    }
}
