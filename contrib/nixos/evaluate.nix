# Evaluates module.nix without nixpkgs, for the tests: what of lib and of the module system it uses,
# in small. Returns the configuration that it makes of `configuration`.
{ configuration }:

let
  inherit (builtins) all attrNames concatLists filter foldl' genList head isAttrs isFunction isList
    isString length listToAttrs map mapAttrs split stringLength substring tail toJSON;

  isOption = value: isAttrs value && (value._type or null) == "option";
  isConditional = value: isAttrs value && (value._type or null) == "if";
  merge = one: other:
    if isAttrs one && isAttrs other then
      one // mapAttrs (name: value:
        if one ? ${name} then merge one.${name} value else value) other
    else if isList one && isList other then one ++ other
    else other;
  type = name: check: { inherit name check; };
  lib = rec {
    mkOption = option: option // { _type = "option"; };
    mkEnableOption = _: mkOption { type = types.bool; default = false; };
    mkIf = condition: content: { _type = "if"; inherit condition content; };
    mkMerge = contents: { _type = "merge"; inherit contents; };
    optionals = condition: list: if condition then list else [ ];
    types = {
      bool = type "bool" builtins.isBool;
      str = type "str" isString;
      package = type "package" (_: true);
      attrsOf = of: type "attrsOf" (value: isAttrs value && all of.check (builtins.attrValues value));
      listOf = of: type "listOf" (value: isList value && all of.check value);
    };
    genAttrs = names: make: listToAttrs (map (name: { inherit name; value = make name; }) names);
    concatMap = builtins.concatMap;
    mapAttrsToList = make: set: map (name: make name set.${name}) (attrNames set);
    concatStringsSep = builtins.concatStringsSep;
    splitString = by: text: filter isString (split by text);
    last = list: builtins.elemAt list (length list - 1);
    toInt = text: builtins.fromJSON text;
    escapeShellArg = text: "'${text}'";
    inherit listToAttrs;
  };

  pkgs = {
    nix = "/nix-of-the-system";
    formats.toml = _: {
      type = type "toml" isAttrs;
      generate = name: value: "/generated/${name}?${toJSON value}";
    };
  };

  # Every option has the value that was given, or its default, and a value of its type.
  settle = options: given: path:
    let
      unknown = filter (name: !(options ? ${name})) (attrNames given);
    in if unknown != [ ] then throw "there is no option ${path}.${head unknown}"
    else mapAttrs (name: option:
      let where = "${path}.${name}"; in
      if isOption option then
        let
          value = given.${name} or option.default or (throw "${where} has no value");
        in if option.type.check value then value else throw "${where} is no ${option.type.name}"
      else settle option (given.${name} or { }) where) options;

  flatten = content:
    if isConditional content then (if content.condition then flatten content.content else { })
    else if (content._type or null) == "merge" then foldl' merge { } (map flatten content.contents)
    else content;

  module = import ./module.nix { inherit config lib pkgs; };
  config = settle module.options
    (merge { services.steading.package = "/steading"; } configuration) "options";
  made = flatten module.config;
in merge {
  systemd.services = { };
  networking.firewall.allowedTCPPorts = [ ];
  environment.etc = { };
} made
