//! A small graph as Nix 2.8.0 writes it. `nix-instantiate` made it from this expression:
//!
//! ```nix
//! let
//!   drv = attributes: derivation ({ system = "x86_64-linux"; builder = "/bin/sh"; } // attributes);
//!   src = url: drv { name = "src"; inherit url; outputHash = "000…"; outputHashAlgo = "sha256";
//!                    outputHashMode = "flat"; };
//!   dep = url: drv { name = "dep"; src = src url; outputs = [ "out" "lib" ]; };
//! in drv { name = "user"; one = (dep "http://a").lib; two = (dep "http://b").out; }
//! ```

use crate::core::{
    derivation::{Derivation, verify_path},
    hash::Sha256,
    store_path::StorePath,
};
use std::collections::BTreeMap;

const SRC: &str = r#"Derive([("out","/nix/store/v7fhk503far527r9d9sk8dh2w6c7h695-src","sha256","0000000000000000000000000000000000000000000000000000000000000000")],[],[],"x86_64-linux","/bin/sh",[],[("builder","/bin/sh"),("name","src"),("out","/nix/store/v7fhk503far527r9d9sk8dh2w6c7h695-src"),("outputHash","0000000000000000000000000000000000000000000000000000000000000000"),("outputHashAlgo","sha256"),("outputHashMode","flat"),("system","x86_64-linux"),("url","http://a")])"#;
const DEP: &str = r#"Derive([("lib","/nix/store/azw0bq8zjrrmfcvn07v4rvzvglpifp57-dep-lib","",""),("out","/nix/store/b71y387cjrd3lfjqbij1cma8fhqa0kbk-dep","","")],[("/nix/store/xb3wwmiiaxhlva9hmwja2ikz4gb7f95s-src.drv",["out"])],[],"x86_64-linux","/bin/sh",[],[("builder","/bin/sh"),("lib","/nix/store/azw0bq8zjrrmfcvn07v4rvzvglpifp57-dep-lib"),("name","dep"),("out","/nix/store/b71y387cjrd3lfjqbij1cma8fhqa0kbk-dep"),("outputs","out lib"),("src","/nix/store/v7fhk503far527r9d9sk8dh2w6c7h695-src"),("system","x86_64-linux")])"#;
const USER: &str = r#"Derive([("out","/nix/store/zaj3vf7pjj3f8n31y4znfal0ihwb0zws-user","","")],[("/nix/store/7x468pdar31l9clc93wbyl4lnmv6r7kd-dep.drv",["lib"]),("/nix/store/gg382dfm2mllznpy96igk1ghw0zk4445-dep.drv",["out"])],[],"x86_64-linux","/bin/sh",[],[("builder","/bin/sh"),("name","user"),("one","/nix/store/azw0bq8zjrrmfcvn07v4rvzvglpifp57-dep-lib"),("out","/nix/store/zaj3vf7pjj3f8n31y4znfal0ihwb0zws-user"),("system","x86_64-linux"),("two","/nix/store/b71y387cjrd3lfjqbij1cma8fhqa0kbk-dep")])"#;

#[test]
fn inputs_with_the_same_hash_become_one_as_in_nix() {
    // The two `dep` differ only in where their source is fetched from, so their hashes are equal;
    // `user` needs `lib` of the one and `out` of the other. Only the union gives Nix's output path.
    let [src_a, src_b] = ["xb3wwmiiaxhlva9hmwja2ikz4gb7f95s", "rwijmycms447wcly5403z1m7ny3xrk24"];
    let graph = [
        (src_a, "src", SRC.to_owned()),
        (src_b, "src", SRC.replace("http://a", "http://b")),
        ("7x468pdar31l9clc93wbyl4lnmv6r7kd", "dep", DEP.to_owned()),
        ("gg382dfm2mllznpy96igk1ghw0zk4445", "dep", DEP.replace(src_a, src_b)),
        ("nlm0l9rbhkikv4cyg9xmsmfnsxgd1zsi", "user", USER.to_owned()),
    ];
    let mut hashes: BTreeMap<StorePath, Sha256> = BTreeMap::new();
    for (digits, name, text) in graph {
        let path: StorePath = format!("/nix/store/{digits}-{name}.drv").parse().unwrap();
        let derivation = Derivation::parse(text.as_bytes()).unwrap();
        assert_eq!(verify_path(&path, text.as_bytes(), &derivation), Ok(()));
        let mut input = |path: &StorePath| hashes.get(path).copied();
        assert_eq!(derivation.verify_outputs(name, &mut input), Ok(()), "{path}");
        let hash = derivation.hash_modulo(&mut input).unwrap();
        hashes.insert(path, hash);
    }
    let different: std::collections::BTreeSet<_> = hashes.values().collect();
    assert_eq!(different.len(), 3, "both sources and both dependencies hash alike");
}
