//! Codes as a Parquet table with a row per image: `name`, `label`, `mirrored`, and as flat lists
//! `codes` [T·h·w], `latents` [d·h·w], `noise` [T·d·h·w].
//!
//! The file's metadata hold the shape and where the codes come from, under `rdpm`.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{
    BoolType, ByteArray, ByteArrayType, DataType, FloatType, Int32Type, Int64Type,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use serde::{Deserialize, Serialize};

use super::rows::{Gathered, Row, Rows, Shape};
use super::{Codes, FORMAT, Origin, damaged};
use crate::error::{Context, Error, Result, hinted};
use crate::store::atomic;
use crate::store::bundle::check_format;

/// Images that a reader holds at a time.
const GROUP: usize = 1024;

const KEY: &str = "rdpm";

#[derive(Serialize, Deserialize)]
struct About {
    format: String,
    #[serde(flatten)]
    origin: Origin,
    #[serde(flatten)]
    shape: Shape,
}

pub(super) fn write(codes: &Codes, path: &Path) -> Result<()> {
    let rows = Rows::of(codes)?;
    let about = About {
        format: FORMAT.to_string(),
        origin: codes.origin.clone(),
        shape: rows.shape,
    };
    let about = KeyValue::new(KEY.to_string(), serde_json::to_string(&about)?);
    let properties = WriterProperties::builder()
        .set_compression(Compression::UNCOMPRESSED)
        .set_statistics_enabled(EnabledStatistics::None)
        // A dictionary of codes halves the file, and takes longer than a GPU's encoder.
        .set_dictionary_enabled(false)
        .set_created_by(concat!("rdpm ", env!("CARGO_PKG_VERSION")).to_string())
        .set_key_value_metadata(Some(vec![about]))
        .build();
    let schema = Arc::new(parse_message_type(&schema(codes)).context("the table's schema")?);
    atomic::write_with(path, |file| {
        let write = || -> Result<(), ParquetError> {
            let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties))?;
            for first in (0..codes.len()).step_by(GROUP) {
                let images = first..(first + GROUP).min(codes.len());
                let mut group = writer.next_row_group()?;
                if !codes.names.is_empty() {
                    let names = codes.names[images.clone()].iter();
                    let names: Vec<ByteArray> = names.map(|name| name.as_str().into()).collect();
                    column::<ByteArrayType>(&mut group, &names, None)?;
                }
                if !codes.labels.is_empty() {
                    let labels = codes.labels[images.clone()].iter();
                    let labels: Vec<i64> = labels.map(|label| i64::from(*label)).collect();
                    column::<Int64Type>(&mut group, &labels, None)?;
                }
                let mirrored = |i| codes.mirrored.get(i).copied().unwrap_or(false);
                let mirrored: Vec<bool> = images.clone().map(mirrored).collect();
                column::<BoolType>(&mut group, &mirrored, None)?;
                let values = images.clone().flat_map(|i| rows.codes_of(i));
                let values: Vec<i32> = values.map(|code| *code as i32).collect();
                column::<Int32Type>(&mut group, &values, Some(rows.shape.codes()))?;
                if rows.latents.is_some() {
                    let latents = images.clone().filter_map(|i| rows.latents_of(i));
                    let latents: Vec<f32> = latents.flatten().copied().collect();
                    column::<FloatType>(&mut group, &latents, Some(rows.shape.latents()))?;
                }
                if rows.noise.is_some() {
                    let noise = images.clone().filter_map(|i| rows.noise_of(i));
                    let noise: Vec<f32> = noise.flatten().copied().collect();
                    column::<FloatType>(&mut group, &noise, Some(rows.shape.noise()))?;
                }
                group.close()?;
            }
            writer.close().map(drop)
        };
        write().map_err(of_the_disk)
    })
}

fn schema(codes: &Codes) -> String {
    let list = |name: &str, element: &str| {
        format!(
            "required group {name} (LIST) {{ repeated group list {{ required {element}; }} }}\n"
        )
    };
    let bits = if codes.origin.codebook_size <= 1 << 16 {
        16
    } else {
        32
    };
    let mut schema = "message codes {\n".to_string();
    if !codes.names.is_empty() {
        schema += "required binary name (UTF8);\n";
    }
    if !codes.labels.is_empty() {
        schema += "required int64 label;\n";
    }
    schema += "required boolean mirrored;\n";
    schema += &list("codes", &format!("int32 element (INTEGER({bits},false))"));
    if codes.latents.is_some() {
        schema += &list("latents", "float element");
    }
    if codes.noise.is_some() {
        schema += &list("noise", "float element");
    }
    schema + "}"
}

/// Writes the next column: a value a row, or a list of `each` values.
fn column<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, impl std::io::Write + Send>,
    values: &[T::T],
    each: Option<usize>,
) -> Result<(), ParquetError> {
    let mut column = group
        .next_column()?
        .ok_or_else(|| ParquetError::General("the schema has fewer columns".into()))?;
    match each {
        None => column.typed::<T>().write_batch(values, None, None)?,
        Some(each) => {
            // No list is empty: each value is defined, and the first of a row begins a list.
            let defined = vec![1; values.len()];
            let repeats = (0..values.len()).map(|i| i16::from(i % each != 0));
            let repeats: Vec<i16> = repeats.collect();
            let column = column.typed::<T>();
            column.write_batch(values, Some(&defined), Some(&repeats))?
        }
    };
    column.close()
}

/// The system's own error, which says that a disk is full.
fn of_the_disk(error: ParquetError) -> Error {
    match error {
        ParquetError::External(cause) => match cause.downcast::<std::io::Error>() {
            Ok(error) => Error::new(*error),
            Err(cause) => Error::msg(cause.to_string()),
        },
        other => Error::new(other),
    }
}

pub(super) fn read(path: &Path) -> Result<Codes> {
    let file = File::open(path).with_context(|| format!("could not read {}", path.display()))?;
    let bad = |error: ParquetError| match error {
        ParquetError::NYI(what) => hinted(
            format!(
                "{} is compressed, which rdpm does not read: {what}",
                path.display()
            ),
            "write it without: DataFrame.to_parquet(FILE, compression=None)",
        ),
        other => damaged(path, other.to_string()),
    };
    let length = file.metadata().map_or(0, |found| found.len());
    let file = SerializedFileReader::new(file).map_err(bad)?;
    let metadata = file.metadata().file_metadata();
    let pairs = metadata.key_value_metadata();
    let about = pairs.into_iter().flatten().find(|pair| pair.key == KEY);
    let about = about
        .and_then(|pair| pair.value.as_deref())
        .unwrap_or("null");
    let unclear = |e| damaged(path, format!("its metadata `{KEY}` is damaged ({e})"));
    let about: serde_json::Value = serde_json::from_str(about).map_err(unclear)?;
    if about.is_null() {
        return Err(hinted(
            format!("{}: a table without the metadata `{KEY}`", path.display()),
            "name a file that `rdpm encode --format parquet` wrote",
        ));
    }
    check_format(path, about["format"].as_str(), FORMAT)?;
    let About { origin, shape, .. } = serde_json::from_value(about).map_err(unclear)?;
    let mut gathered = Gathered::new(path);
    for number in 0..file.num_row_groups() {
        let group = file.get_row_group(number).map_err(bad)?;
        let count = group.metadata().num_rows();
        if u64::try_from(count).map_or(true, |count| count / 8 > length) {
            return Err(damaged(
                path,
                format!("{count} rows in a file of {length} bytes"),
            ));
        }
        rows(&*group, shape, &mut gathered).map_err(|error| {
            match error.downcast::<ParquetError>() {
                Ok(error) => bad(error),
                Err(error) => error,
            }
        })?;
    }
    gathered.finish(origin)
}

fn rows(group: &dyn RowGroupReader, shape: Shape, gathered: &mut Gathered) -> Result<()> {
    let count = usize::try_from(group.metadata().num_rows())?;
    let mut rows: Vec<Row> = (0..count).map(|_| Row::default()).collect();
    for at in 0..group.num_columns() {
        let path = group.metadata().column(at).column_path();
        let name = path.parts().first().map_or("", String::as_str);
        let column = group.get_column_reader(at)?;
        let wrong = || ParquetError::General(format!("the column `{name}` has another type"));
        match (name, column) {
            ("name", ColumnReader::ByteArrayColumnReader(column)) => {
                for (row, name) in rows.iter_mut().zip(values(column, count)?) {
                    row.name = Some(String::from_utf8_lossy(name.data()).into_owned());
                }
            }
            ("label", ColumnReader::Int64ColumnReader(column)) => {
                for (row, label) in rows.iter_mut().zip(values(column, count)?) {
                    row.label = Some(u32::try_from(label).map_err(|_| {
                        ParquetError::General(format!("the label {label} is no class"))
                    })?);
                }
            }
            ("mirrored", ColumnReader::BoolColumnReader(column)) => {
                for (row, mirrored) in rows.iter_mut().zip(values(column, count)?) {
                    row.mirrored = mirrored;
                }
            }
            ("codes", ColumnReader::Int32ColumnReader(column)) => {
                for (row, codes) in rows.iter_mut().zip(lists(column, count)?) {
                    row.codes = codes.into_iter().map(|code| code as u32).collect();
                }
            }
            ("latents", ColumnReader::FloatColumnReader(column)) => {
                for (row, latents) in rows.iter_mut().zip(lists(column, count)?) {
                    row.latents = Some(latents);
                }
            }
            ("noise", ColumnReader::FloatColumnReader(column)) => {
                for (row, noise) in rows.iter_mut().zip(lists(column, count)?) {
                    row.noise = Some(noise);
                }
            }
            ("name" | "label" | "mirrored" | "codes" | "latents" | "noise", _) => {
                return Err(wrong().into());
            }
            // A column that somebody else added.
            _ => {}
        }
    }
    rows.into_iter()
        .try_for_each(|row| gathered.push(shape, row))
}

/// All values of a column without lists.
fn values<T: DataType>(
    mut column: ColumnReaderImpl<T>,
    count: usize,
) -> Result<Vec<T::T>, ParquetError> {
    let (mut values, mut defined) = (Vec::new(), Vec::new());
    column.read_records(count, Some(&mut defined), None, &mut values)?;
    match values.len() == count {
        true => Ok(values),
        false => Err(ParquetError::General("a value is missing".into())),
    }
}

/// All lists of a column, none of which is empty.
fn lists<T: DataType>(
    mut column: ColumnReaderImpl<T>,
    count: usize,
) -> Result<Vec<Vec<T::T>>, ParquetError> {
    let (mut values, mut defined, mut repeats) = (Vec::new(), Vec::new(), Vec::new());
    let mut left = count;
    while left > 0 {
        let (read, ..) =
            column.read_records(left, Some(&mut defined), Some(&mut repeats), &mut values)?;
        if read == 0 {
            break;
        }
        left -= read;
    }
    if left > 0 || values.len() != repeats.len() {
        return Err(ParquetError::General("a list is missing or empty".into()));
    }
    let mut lists: Vec<Vec<T::T>> = Vec::with_capacity(count);
    for (value, repeat) in values.into_iter().zip(repeats) {
        match lists.last_mut() {
            Some(list) if repeat > 0 => list.push(value),
            _ => lists.push(vec![value]),
        }
    }
    Ok(lists)
}
