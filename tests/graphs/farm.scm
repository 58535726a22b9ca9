;; The graphs of the test with Guix machines. It comes behind the prelude of
;; tests/common/private_guix.rs, which has `make` and `say`, and behind definitions of `gate`, a
;; file that ends the ticking build by appearing, and `mib`, the size of the largest output.
(use-modules (gcrypt hash) (rnrs bytevectors))

(define (out drv) (derivation->output-path drv))

;; A derivation that needs its inputs to exist, and refers to them.
(define (node name inputs)
  (make name
        (string-append "for input in $ins; do test -e $input || exit 1; done; echo " name
                       " of $ins > $out")
        #:inputs (map list inputs)
        #:env `(("ins" . ,(string-join (map out inputs) " ")))))

;; 50 derivations that nothing holds back, and one that needs them all.
(define wide (node "wide" (map (lambda (n) (node (format #f "leaf-~a" n) '())) (iota 50))))
(define ticking
  (make "ticking"
        (string-append "n=1; while ! test -e " gate
                       "; do echo tick $n; n=$((n + 1)); busybox sleep 0.2; done; echo x > $out")))
;; 21 derivations, each needing the one before.
(define chain
  (fold (lambda (n below) (node (format #f "chain-~a" n) (if below (list below) '()))) #f
        (iota 21)))
;; 20 derivations, 84 edges: one below, three layers of six, a top.
(define diamond
  (node "diamond-top"
        (fold (lambda (level below)
                (map (lambda (n) (node (format #f "diamond-~a-~a" level n) below)) (iota 6)))
              (list (node "diamond-bottom" '()))
              (iota 3))))
(define multi
  (make "multi" "echo the library > $lib; echo how to use $lib > $doc; echo made with $lib > $out"
        #:outputs '("out" "lib" "doc")))
(define uses-lib
  (make "uses-lib" "test -e $lib && echo uses $lib > $out" #:inputs (list (list multi "lib"))
        #:env `(("lib" . ,(derivation->output-path multi "lib")))))
(define fixed
  (make "fixed" "printf hello > $out" #:hash-algo 'sha256 #:hash (sha256 (string->utf8 "hello"))))
(define self-reference (make "self-reference" "echo I am $out > $out"))
(define many-files
  (make "many-files"
        "busybox mkdir $out; cd $out
         for a in $(busybox seq 100); do
           busybox mkdir $a; for b in $(busybox seq 100); do echo $a $b > $a/$b; done
         done; busybox ln -s 1/1 link"))
(define big
  (make "big"
        (format #f "busybox mkdir $out; busybox dd if=/dev/urandom of=$out/blob bs=1048576 count=~a"
                mib)))
(define failing (make "failing" "echo about to fail; echo on stderr >&2; exit 3"))
(define depends-on-failing (node "depends-on-failing" (list failing)))

(for-each say (list wide ticking chain diamond multi uses-lib fixed self-reference many-files big
                    failing depends-on-failing))
