# The program, built from this repository: pkgs.callPackage ./package.nix { }
{ lib, rustPlatform, installShellFiles, openssh }:

rustPlatform.buildRustPackage {
  pname = "steading";
  version = (lib.importTOML ../../Cargo.toml).package.version;
  src = lib.cleanSource ../..;
  cargoLock.lockFile = ../../Cargo.lock;
  nativeBuildInputs = [ installShellFiles ];
  # The tests start coordinators, agents and daemons, which a build sandbox has no room for.
  doCheck = false;
  postInstall = ''
    $out/bin/steading manual pages
    installManPage pages/man1/*.1
    installShellCompletion --bash pages/bash/steading --zsh pages/zsh/_steading \
      --fish pages/fish/steading.fish
  '';
  meta = {
    description = "Build coordinator for Guix and Nix whose only transport is SSH";
    license = lib.licenses.gpl3Plus;
    mainProgram = "steading";
    platforms = lib.platforms.linux;
  };
}
