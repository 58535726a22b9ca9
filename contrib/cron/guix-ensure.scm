;; Has the daemon fetch store items, derivations too, from its substitute servers; paths come on
;; standard input, one per line:
;;   guix repl -- guix-ensure.scm < paths
(use-modules (guix store) (ice-9 rdelim))

(with-store store
  (let loop ((path (read-line)))
    (unless (eof-object? path)
      (unless (valid-path? store path)
        (ensure-path store path))
      (loop (read-line)))))
