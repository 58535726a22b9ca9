//! Layered random graphs: the same every time, ten edges for each derivation but the lowest.

use crate::{closure, random::Random};
use std::io::Write;
use steading::{
    core::store_path::StoreDir,
    formats::export::{entry_begin, entry_trailer, stream_end},
};

/// How many inputs a derivation has.
const INPUTS: usize = 10;
/// How many layers there are.
const LAYERS: usize = 50;

/// Returns the inputs of each member, by number: always from the layer below.
pub(crate) fn edges(builds: usize) -> Vec<Vec<u32>> {
    let width = (builds / LAYERS).max(INPUTS);
    let mut random = Random::new(7);
    let mut all = Vec::with_capacity(builds);
    for member in 0..builds {
        let layer = member / width;
        let mut inputs = Vec::new();
        while layer > 0 && inputs.len() < INPUTS {
            let below = (layer - 1) * width;
            let place = usize::try_from(random.below(width as u64)).unwrap();
            let input = u32::try_from(below + place).unwrap();
            if !inputs.contains(&input) {
                inputs.push(input);
            }
        }
        all.push(inputs);
    }
    all
}

/// Writes an export stream of the derivations, inputs first.
pub(crate) fn stream(builds: usize, out: &mut impl Write) {
    let dir = StoreDir::nix();
    let filling = "echo building; ".repeat(60);
    let mut made: Vec<closure::Drv> = Vec::with_capacity(builds);
    for (member, inputs) in edges(builds).into_iter().enumerate() {
        let inputs: Vec<(&closure::Drv, &str)> =
            inputs.iter().map(|input| (&made[*input as usize], "out")).collect();
        let name = format!("member-of-a-layer-{member}");
        let mut drv = closure::derive(&closure::Recipe {
            store_dir: &dir,
            name: &name,
            script: &filling,
            outputs: &["out"],
            inputs: &inputs,
            sources: &[],
        });
        out.write_all(&entry_begin()).unwrap();
        out.write_all(&closure::file_nar(&drv.text)).unwrap();
        out.write_all(&entry_trailer(&drv.path, &[], None)).unwrap();
        drv.text = Vec::new();
        made.push(drv);
    }
    out.write_all(&stream_end()).unwrap();
}
