//! How the lengths of a reply's pieces are stored: each as a LEB128 number, so nearly always as one byte.

/// Lengths in bytes, as they are stored.
pub fn encode(lengths: &[usize]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(lengths.len());
    for length in lengths {
        let mut rest = *length;
        while rest >= 0x80 {
            bytes.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        bytes.push(rest as u8);
    }
    bytes
}

/// The lengths again; what is damaged says nothing, for how a text was cut is not worth failing for.
pub fn decode(bytes: &[u8]) -> Vec<usize> {
    let mut lengths = Vec::new();
    let (mut length, mut shift) = (0_usize, 0_u32);
    for byte in bytes {
        let Some(part) = usize::from(byte & 0x7f).checked_shl(shift) else { return Vec::new() };
        length |= part;
        shift += 7;
        if byte & 0x80 == 0 {
            lengths.push(length);
            (length, shift) = (0, 0);
        }
    }
    lengths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_survive_and_damage_is_harmless() {
        let lengths = [1, 0x7f, 0x80, 0x3fff, 0x4000, 8 << 20, usize::MAX];
        assert_eq!(decode(&encode(&lengths)), lengths);
        assert_eq!(encode(&[5, 6]), [5, 6]);
        assert!(decode(&[]).is_empty() && decode(&[0xff; 32]).is_empty());
    }
}
