//! Hostile questions and answers for the name server. It owns the promise that reading them never panics, and that an
//! answer of ours is one that we can read ourselves.

#![no_main]

use libfuzzer_sys::fuzz_target;

// The agent is a program, not a library: its parser stands alone, so that it can be taken from there.
#[allow(dead_code)]
#[path = "../../agent/src/network/dns/packet.rs"]
mod packet;

use packet::{Data, Own, Query, Reply, refusal};

fuzz_target!(|input: (Vec<u8>, Vec<u8>, u32, bool)| {
    let (question, answer, age, stream) = input;
    let query = match Query::parse(&question) {
        Ok(query) => query,
        Err(bad) => return drop(refusal(bad)),
    };
    let id = answer.first_chunk().map_or(0, |id| u16::from_be_bytes(*id));
    // The question in front is what lets a stranger's answer get any further.
    let own = query.answer(0, &[Own { name: None, ttl: age, data: Data::Alias(query.name.clone()) }], stream);
    assert!(Reply::parse(&own, &query, query.id).is_some());
    let spliced = [own.get(..12).unwrap_or_default(), &question.get(12..).unwrap_or_default(), &answer].concat();
    for bytes in [&answer, &spliced] {
        for id in [id, query.id] {
            if let Some(reply) = Reply::parse(bytes, &query, id) {
                assert!(reply.size() >= 128);
                let again = reply.answer(&query, age, stream);
                assert!(reply.truncated || Reply::parse(&again, &query, query.id).is_some());
            }
        }
    }
});
