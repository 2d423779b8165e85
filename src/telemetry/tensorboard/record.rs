//! A record of a TFRecord file: the length of its data u64, that length's checksum, the data, and
//! their checksum. Checksums are u32: CRC-32C, rotated right by 15 bits, plus a constant.

/// Castagnoli's polynomial, bits reversed.
const POLYNOMIAL: u32 = 0x82f6_3b78;

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut crc, mut bit) = (byte as u32, 0);
        while bit < 8 {
            crc = (crc >> 1) ^ (POLYNOMIAL * (crc & 1));
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| (crc >> 8) ^ TABLE[usize::from(crc as u8 ^ byte)];
    !bytes.iter().fold(!0, step)
}

fn checksum(bytes: &[u8]) -> [u8; 4] {
    let masked = crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8);
    masked.to_le_bytes()
}

/// Adds a record of `data` to `file`.
pub(super) fn put(file: &mut Vec<u8>, data: &[u8]) {
    let length = (data.len() as u64).to_le_bytes();
    file.extend_from_slice(&length);
    file.extend_from_slice(&checksum(&length));
    file.extend_from_slice(data);
    file.extend_from_slice(&checksum(data));
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The data of all records; panics where one is not whole.
    pub fn read(mut file: &[u8]) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        while !file.is_empty() {
            let length = u64::from_le_bytes(file[..8].try_into().expect("8 bytes"));
            assert_eq!(checksum(&file[..8]), file[8..12], "the length's checksum");
            let (data, rest) = file[12..].split_at(length as usize);
            assert_eq!(checksum(data), rest[..4], "the data's checksum");
            records.push(data.to_vec());
            file = &rest[4..];
        }
        records
    }

    #[test]
    fn checksums_are_those_of_the_standard() {
        // RFC 3720, B.4, and the check value of the catalogue of CRCs.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        let rising: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&rising), 0x46dd_794e);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn what_is_put_is_read() {
        let mut file = Vec::new();
        for data in [&b"one"[..], b"", &[7; 300]] {
            put(&mut file, data);
        }
        assert_eq!(read(&file), [b"one".to_vec(), vec![], vec![7; 300]]);
    }
}
