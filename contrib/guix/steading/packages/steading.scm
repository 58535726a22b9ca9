;;; The package of Steading, from the checkout that this file is in.

(define-module (steading packages steading)
  #:use-module (guix base16)
  #:use-module (guix build-system cargo)
  #:use-module (guix download)
  #:use-module (guix gexp)
  #:use-module (guix git-download)
  #:use-module ((guix licenses) #:prefix license:)
  #:use-module (guix packages)
  #:use-module (guix utils)
  #:use-module (gnu packages ssh)
  #:use-module (ice-9 match)
  #:use-module (srfi srfi-1)
  #:use-module (steading packages crates)
  #:export (rust-of-steading
            steading))

;; What Cargo.toml says.
(define %rust-version "1.95")

(define rust-of-steading
  ;; The newest Rust of this Guix.  Versions beside `rust' itself are hidden
  ;; packages of the same module.  With a Guix whose newest is older than
  ;; %RUST-VERSION the package is refused by cargo, which says so.
  (let* ((interface (resolve-interface '(gnu packages rust)))
         (found (module-map (lambda (name variable)
                              (and (string-prefix? "rust" (symbol->string name))
                                   (variable-bound? variable)
                                   (variable-ref variable)))
                            interface))
         (rusts (filter (lambda (value)
                          (and (package? value)
                               (string=? (package-name value) "rust")
                               (member "cargo" (package-outputs value))))
                        found)))
    (reduce (lambda (one other)
              (if (version>? (package-version one) (package-version other))
                  one
                  other))
            #f
            rusts)))

(define (crate->origin crate)
  ;; crates.io tells the SHA-256 of a crate's archive in hexadecimal digits.
  (match crate
    ((name version digits)
     (origin
       (method url-fetch)
       (uri (crate-uri name version))
       (file-name (string-append (downstream-package-name "rust-" name)
                                 "-" version ".tar.gz"))
       (hash (content-hash (base16-string->bytevector digits) sha256))))))

(define %checkout
  (string-append (current-source-directory) "/../../../.."))

(define %source
  (local-file "../../../.." "steading-checkout"
              #:recursive? #t
              #:select? (or (git-predicate %checkout)
                            (const #t))))

(define steading
  (package
    (name "steading")
    (version "0.1.0")
    (source %source)
    (build-system cargo-build-system)
    (arguments
     (list
      #:rust rust-of-steading
      #:install-source? #f
      ;; Its tests are for a machine with ssh, namespaces and daemons.
      #:tests? #f
      #:phases
      #~(modify-phases %standard-phases
          (add-after 'install 'install-names
            (lambda _
              ;; guix-daemon runs one path, without words in front of its verb.
              (symlink "steading"
                       (string-append #$output "/bin/steading-guix")))))))
    (inputs (cons openssh (map crate->origin %crates)))
    (home-page #f)
    (synopsis "Build coordinator for Guix and Nix whose only transport is SSH")
    (description
     "Steading gives builds of Guix and Nix derivations to machines that dial in
over SSH, and publishes what they built, verified and signed.  One program is
coordinator, agent, client, and the program @command{guix} of a machine whose
guix-daemon builds on the farm.")
    (license license:gpl3+)))
