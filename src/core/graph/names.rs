//! The names of derivations, one behind the other.

/// Below so many unused bytes nothing is moved.
const UNUSED_MIN: usize = 1 << 16;

/// Texts of at most 255 bytes.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    texts: String,
    /// How many bytes belong to names that were forgotten.
    unused: usize,
}

/// A name in [`Names`]; empty before it is known.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Named {
    at: u32,
    bytes: u8,
}

impl Named {
    pub(super) const fn is_empty(self) -> bool {
        self.bytes == 0
    }
}

impl Names {
    /// # Panics
    /// At a name longer than those of store paths, or at four thousand million bytes.
    pub(super) fn add(&mut self, name: &str) -> Named {
        let at = u32::try_from(self.texts.len()).expect("all names have less than 2^32 bytes");
        let bytes = u8::try_from(name.len()).expect("names of store paths are shorter");
        self.texts.push_str(name);
        Named { at, bytes }
    }

    pub(super) fn get(&self, named: Named) -> &str {
        &self.texts[named.at as usize..named.at as usize + usize::from(named.bytes)]
    }

    pub(super) fn forget(&mut self, named: Named) {
        self.unused += usize::from(named.bytes);
    }

    /// Tells whether more is unused than used.
    pub(super) const fn are_sparse(&self) -> bool {
        self.unused > UNUSED_MIN && self.unused > self.texts.len() / 2
    }

    /// Leaves the unused bytes out. `all` are all names that were not forgotten.
    pub(super) fn move_together<'a>(&mut self, all: impl Iterator<Item = &'a mut Named>) {
        let mut moved = Self::default();
        moved.texts.reserve_exact(self.texts.len() - self.unused);
        for named in all {
            *named = moved.add(self.get(*named));
        }
        *self = moved;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_while_others_are_forgotten() {
        let mut names = Names::default();
        let mut kept = Vec::new();
        for number in 0..20_000 {
            let one = names.add(&format!("name-{number}"));
            if number % 3 == 0 {
                kept.push((number, one));
            } else {
                names.forget(one);
            }
            if names.are_sparse() {
                names.move_together(kept.iter_mut().map(|(_, one)| one));
            }
        }
        assert!(names.texts.len() < 200_000, "{} bytes", names.texts.len());
        for (number, one) in kept {
            assert_eq!(names.get(one), format!("name-{number}"));
        }
    }
}
