;; Prints the derivations of all packages for a system and a target, one per line:
;;   guix repl -- guix-packages.scm SYSTEM|- TARGET|-
;; A package that is not for the system, or whose derivation cannot be computed, is left out and
;; named on standard error.
(use-modules (gnu packages) (guix derivations) (guix packages) (guix store) (guix utils)
             (ice-9 match))

(define (wish text)
  (if (string=? text "-") #f text))

(define (derivation-of store package system target)
  (catch #t
    (lambda ()
      (derivation-file-name
       (if target
           (package-cross-derivation store package target system #:graft? #f)
           (package-derivation store package system #:graft? #f))))
    (lambda arguments
      (format (current-error-port) "left out: ~a: ~a~%"
              (package-full-name package) (car arguments))
      #f)))

(match (cdr (command-line))
  ((system target)
   (let ((system (or (wish system) (%current-system))) (target (wish target)))
     (with-store store
       (fold-packages
        (lambda (package _)
          (when (supported-package? package system)
            (let ((file (derivation-of store package system target)))
              (when file
                (display file)
                (newline)))))
        #f
        #:select? (lambda (package)
                    (and (not (hidden-package? package))
                         (not (package-superseded package)))))))))
