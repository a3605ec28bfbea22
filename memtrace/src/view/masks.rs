//! Masks of flags as they read: a host has few different ones, each made of many words.

/// The last few masks, as they read.
#[derive(Debug, Default)]
pub struct Masks(Vec<(u32, Box<[u8]>)>);

/// More than the masks of allocations that stall at a time, and few enough to search one by one.
const MOST: usize = 16;

impl Masks {
    /// Appends `mask` as `spell` does, which has to append the same every time.
    pub fn append(&mut self, mask: u32, spell: impl FnOnce(&mut Vec<u8>), out: &mut Vec<u8>) {
        if let Some((_, text)) = self.0.iter().find(|(known, _)| *known == mask) {
            out.extend_from_slice(text);
            return;
        }
        let start = out.len();
        spell(out);
        if self.0.len() == MOST {
            self.0.clear();
        }
        self.0.push((mask, out[start..].into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mask_has_its_own_text() {
        let mut masks = Masks::default();
        // More than are remembered, each twice in a row and again later.
        for mask in (0..40).flat_map(|mask| [mask, mask]).chain(0..40) {
            let mut out = b"before ".to_vec();
            let text = format!("<{mask}>");
            masks.append(mask, |out| out.extend_from_slice(text.as_bytes()), &mut out);
            assert_eq!(String::from_utf8_lossy(&out), format!("before {text}"));
        }
    }

    #[test]
    fn a_mask_is_spelt_once() {
        let (mut masks, mut spelt, mut out) = (Masks::default(), 0, Vec::new());
        for _ in 0..3 {
            masks.append(0xcc0, |_| spelt += 1, &mut out);
        }
        assert_eq!(spelt, 1);
    }
}
