# services.steading for NixOS: a coordinator, an agent, or both.
#
#   imports = [ /path/to/contrib/nixos/module.nix ];
#   services.steading.package = pkgs.callPackage /path/to/contrib/nixos/package.nix { };
#   services.steading.coordinator.enable = true;
{ config, lib, pkgs, ... }:

let
  inherit (lib) mkEnableOption mkIf mkMerge mkOption optionals types;
  cfg = config.services.steading;
  toml = pkgs.formats.toml { };
  roles = [ "agents" "viewers" "submitters" "operators" "admins" ];
  port = lib.toInt (lib.last (lib.splitString ":" cfg.coordinator.listen));
  # Keys of the configuration are copied to the state directory at each start, so that the
  # coordinator finds those and the ones that were put there by hand in one place.
  keyFiles = lib.concatMap (role: lib.mapAttrsToList (name: text: {
    name = "steading/keys/${role}/${name}.pub";
    value.text = "${text}\n";
  }) cfg.coordinator.keys.${role}) roles;
  hardened = {
    NoNewPrivileges = true;
    ProtectSystem = "strict";
    ProtectHome = true;
    ProtectClock = true;
    ProtectKernelModules = true;
    RestrictRealtime = true;
    SystemCallArchitectures = "native";
    LimitNOFILE = 65536;
  };
in {
  options.services.steading = {
    package = mkOption {
      type = types.package;
      description = "The package with the program steading.";
    };
    coordinator = {
      enable = mkEnableOption "the Steading coordinator";
      listen = mkOption {
        type = types.str;
        default = "[::]:2222";
        description = "The address and port of its SSH door.";
      };
      openFirewall = mkOption {
        type = types.bool;
        default = false;
        description = "Whether the firewall lets its port through.";
      };
      settings = mkOption {
        type = toml.type;
        default = { };
        description = "What stands in steading.toml.";
      };
      keys = lib.genAttrs roles (role: mkOption {
        type = types.attrsOf types.str;
        default = { };
        description = "Public keys of ${role}, by name, each with its options in front.";
      });
    };
    agent = {
      enable = mkEnableOption "a Steading build agent";
      coordinator = mkOption {
        type = types.str;
        description = "Where the coordinator is: HOST:PORT.";
      };
      hostKey = mkOption {
        type = types.str;
        description = "The coordinator's host key, or a file with it.";
      };
      extraOptions = mkOption {
        type = types.listOf types.str;
        default = [ ];
        description = "More options of steading agent.";
      };
    };
  };

  config = mkMerge [
    (mkIf cfg.coordinator.enable {
      users.users.steading = {
        isSystemUser = true;
        group = "steading";
        home = "/var/lib/steading";
      };
      users.groups.steading = { };
      environment.etc = lib.listToAttrs keyFiles;
      networking.firewall.allowedTCPPorts = optionals cfg.coordinator.openFirewall [ port ];
      systemd.services.steading-coordinator = {
        description = "Steading build coordinator";
        wantedBy = [ "multi-user.target" ];
        wants = [ "network-online.target" ];
        after = [ "network-online.target" ];
        preStart = ''
          for role in ${lib.concatStringsSep " " roles}; do
            mkdir -p "$STATE_DIRECTORY/keys/$role"
            rm -f "$STATE_DIRECTORY/keys/$role/"*@nixos.pub
            for key in /etc/steading/keys/$role/*.pub; do
              [ -e "$key" ] || continue
              install -m 644 "$key" "$STATE_DIRECTORY/keys/$role/$(basename "$key" .pub)@nixos.pub"
            done
          done
        '';
        serviceConfig = hardened // {
          Type = "notify";
          NotifyAccess = "main";
          ExecStart = "${cfg.package}/bin/steading coordinator --state /var/lib/steading"
            + " --listen ${lib.escapeShellArg cfg.coordinator.listen}"
            + " --config ${toml.generate "steading.toml" cfg.coordinator.settings}";
          User = "steading";
          Group = "steading";
          StateDirectory = "steading";
          StateDirectoryMode = "0755";
          Restart = "always";
          RestartSec = 2;
          TimeoutStartSec = "10min";
          PrivateTmp = true;
          PrivateDevices = true;
          RestrictNamespaces = true;
        };
      };
    })
    (mkIf cfg.agent.enable {
      users.users.steading-agent = {
        isSystemUser = true;
        group = "steading-agent";
        home = "/var/lib/steading-agent";
      };
      users.groups.steading-agent = { };
      # Daemons build single derivations for trusted users only.
      nix.settings.trusted-users = [ "steading-agent" ];
      systemd.services.steading-agent = {
        description = "Steading build agent";
        wantedBy = [ "multi-user.target" ];
        wants = [ "network-online.target" ];
        after = [ "network-online.target" "nix-daemon.socket" ];
        path = [ pkgs.nix ];
        serviceConfig = hardened // {
          Type = "exec";
          ExecStart = lib.concatStringsSep " " ([
            "${cfg.package}/bin/steading agent --state /var/lib/steading-agent"
            "--coordinator ${cfg.agent.coordinator}"
            "--host-key ${lib.escapeShellArg cfg.agent.hostKey}"
          ] ++ cfg.agent.extraOptions);
          ExecReload = "/bin/kill -HUP $MAINPID";
          User = "steading-agent";
          Group = "steading-agent";
          StateDirectory = "steading-agent";
          StateDirectoryMode = "0700";
          # Attempts outlive the agent, and the next one adopts them.
          KillMode = "process";
          Restart = "always";
          RestartSec = 5;
          OOMPolicy = "continue";
        };
      };
    })
  ];
}
