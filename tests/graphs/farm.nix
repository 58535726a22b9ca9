# The graphs of the end-to-end test, for any Nix with no packages at all: builders are /bin/sh,
# with the machine's own tools where PATH is given (the tests run without a sandbox).
#
#   nix-instantiate farm.nix -A chain --argstr salt 1
#
# `salt` makes fresh derivations; `sources` is a directory with tarballs of real packages; `gate`
# is a file that ends the ticking build by appearing.
{ salt ? "0", sources ? null, gate ? "/nonexistent" }:
let
  system = builtins.currentSystem;

  # A derivation whose script may use the machine's tools.
  make = name: script: more: derivation ({
    inherit name system salt;
    builder = "/bin/sh";
    args = [ "-e" "-c" script ];
    PATH = "/usr/bin:/bin";
  } // more);

  # A derivation that needs its inputs to exist, and refers to them.
  node = name: inputs: make name ''
    for input in $inputs; do test -e "$input"; done
    echo "${name} of $inputs" > "$out"
  '' { inherit inputs; };

  count = from: to: if from > to then [ ] else [ from ] ++ count (from + 1) to;

  link = number: node "chain-${toString number}" (if number == 0 then [ ] else [ (link (number - 1)) ]);
  layer = level: width: inputs:
    map (number: node "diamond-${toString level}-${toString number}" inputs) (count 1 width);

  unpack = tarball: ''
    tar --extract --file ${tarball}
    cd */
  '';
in rec {
  # 21 derivations, each needing the one before.
  chain = link 20;

  # 20 derivations, 84 edges: one below, three layers of six that need all of the layer below, a top.
  diamond = node "diamond-top" (layer 3 6 (layer 2 6 (layer 1 6 [ (node "diamond-bottom" [ ]) ])));

  # 50 derivations that nothing holds back, and one that needs them all.
  wide = node "wide" (map (number: node "leaf-${toString number}" [ ]) (count 1 50));

  multi = make "multi" ''
    echo "the library" > "$lib"
    echo "how to use $lib" > "$doc"
    echo "made with $lib" > "$out"
  '' { outputs = [ "out" "lib" "doc" ]; };
  usesLib = make "uses-lib" ''echo "$(cat "$library") at $library" > "$out"'' { library = multi.lib; };

  fixed = make "fixed" ''printf hello > "$out"'' {
    outputHashMode = "flat";
    outputHashAlgo = "sha256";
    outputHash = builtins.hashString "sha256" "hello";
  };

  failing = make "failing" ''
    echo "about to fail"
    echo "error: no such luck" >&2
    exit 3
  '' { };
  dependsOnFailing = node "depends-on-failing" [ failing ];

  # 100 directories of 100 files each, a symbolic link and an executable.
  manyFiles = make "many-files" ''
    mkdir "$out"
    cd "$out"
    for directory in $(seq 100); do
      mkdir "$directory"
      for file in $(seq 100); do echo "$directory/$file" > "$directory/$file"; done
    done
    ln -s 1/1 link
    printf '#!/bin/sh\necho run\n' > run
    chmod +x run
  '' { };

  # 200 MB that cannot be compressed.
  big = make "big" ''
    mkdir "$out"
    head --bytes=209715200 /dev/urandom > "$out/blob"
  '' { };

  # 3 MB in one file that cannot be compressed, and something made of it.
  archive = make "archive" ''head --bytes=3000000 /dev/urandom > "$out"'' { };
  usesArchive = make "uses-archive" ''cat ${archive} ${archive} > "$out"'' { };

  selfReference = make "self-reference" ''echo "I am $out" > "$out"'' { };

  # Prints a line every half second until the gate is there.
  ticking = make "ticking" ''
    number=0
    until [ -e ${gate} ] || [ "$number" -ge 600 ]; do
      number=$((number + 1))
      echo "tick $number"
      sleep 0.5
    done
    echo "$number" > "$out"
  '' { };

  # Real packages, from the tarballs that Debian builds them from.
  zlib = make "zlib-1.2.13" (unpack "${sources}/zlib_1.2.13.dfsg.orig.tar.bz2" + ''
    ./configure --prefix="$out"
    make
    make install
  '') { };
  gzrt = make "gzrt-0.8" (unpack "${sources}/gzrt_0.8.orig.tar.gz" + ''
    cc -O2 -I"$zlib/include" -o gzrecover gzrecover.c -L"$zlib/lib" -lz -Wl,-rpath,"$zlib/lib"
    mkdir -p "$out/bin"
    cp gzrecover "$out/bin/"
  '') { inherit zlib; };
  hello = make "hello-2.10" (unpack "${sources}/hello_2.10.orig.tar.gz" + ''
    ./configure --prefix="$out" --disable-nls
    make
    make install
  '') { };
}
