//! Any bytes in any split are frames and messages of either direction, or are refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steading::protocol::{
    bulk::{BulkFromAgent, BulkToAgent},
    frame::{self, Decoder},
    message::{FromAgent, ToAgent},
};

fuzz_target!(|pieces: Vec<Vec<u8>>| {
    let mut decoder = Decoder::default();
    for piece in &pieces {
        decoder.feed(piece);
        loop {
            let Ok(next) = decoder.next_frame() else { return };
            let Some(body) = next else { break };
            frame::decode::<FromAgent>(&body).ok();
            frame::decode::<ToAgent>(&body).ok();
            frame::decode::<BulkFromAgent>(&body).ok();
            frame::decode::<BulkToAgent>(&body).ok();
        }
    }
    decoder.finish().ok();
});
