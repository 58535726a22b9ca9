;;; Shepherd services: the coordinator, an agent, and a guix-daemon that builds on the farm.

(define-module (steading services steading)
  #:use-module (guix gexp)
  #:use-module (guix packages)
  #:use-module (guix records)
  #:use-module ((gnu packages admin) #:select (shadow))
  #:use-module ((gnu packages package-management) #:select (guix))
  #:use-module ((gnu packages ssh) #:select (openssh))
  #:use-module (gnu services)
  #:use-module (gnu services base)
  #:use-module (gnu services shepherd)
  #:use-module (gnu system shadow)
  #:use-module (ice-9 match)
  #:use-module (srfi srfi-1)
  #:use-module (steading packages steading)
  #:export (steading-coordinator-configuration
            steading-coordinator-configuration?
            steading-coordinator-service-type

            steading-agent-configuration
            steading-agent-configuration?
            steading-agent-service-type

            steading-guix-configuration
            steading-guix-configuration?
            steading-guix-service-type
            guix-configuration-with-steading

            toml-text))

(define (toml-value value)
  (match value
    (#t "true")
    (#f "false")
    ((? number?) (number->string value))
    ;; Scheme's strings are written like TOML's, but for what no setting has in it.
    ((? string?) (object->string value))
    ((? symbol?) (object->string (symbol->string value)))
    ((? list?) (string-append "[" (string-join (map toml-value value) ", ") "]"))))

(define (toml-text settings)
  "Return SETTINGS, an association list from keys to strings, symbols, numbers,
booleans and lists of them, as TOML."
  (string-concatenate
   (map (match-lambda
          ((key . value)
           (string-append (symbol->string key) " = " (toml-value value) "\n")))
        settings)))


;;;
;;; The coordinator.
;;;

(define-record-type* <steading-coordinator-configuration>
  steading-coordinator-configuration make-steading-coordinator-configuration
  steading-coordinator-configuration?
  (package   steading-coordinator-configuration-package ;file-like
             (default steading))
  (user      steading-coordinator-configuration-user ;string
             (default "steading"))
  (group     steading-coordinator-configuration-group ;string
             (default "steading"))
  (state     steading-coordinator-configuration-state ;string
             (default "/var/lib/steading"))
  (listen    steading-coordinator-configuration-listen ;string
             (default "[::]:2222"))
  ;; What `steading.toml' has, see `src/config.rs': ((lease . 600) …).  #f
  ;; leaves that file to the administrator, in the state directory.
  (settings  steading-coordinator-configuration-settings ;alist | #f
             (default #f))
  (log-file  steading-coordinator-configuration-log-file ;string
             (default "/var/log/steading-coordinator.log")))

(define (steading-coordinator-shepherd-services config)
  (match-record config <steading-coordinator-configuration>
    (package user group state listen settings log-file)
    (list
     (shepherd-service
      (documentation "The coordinator of a build farm.")
      (provision '(steading-coordinator))
      (requirement '(user-processes networking))
      (start #~(make-forkexec-constructor
                (list #$(file-append package "/bin/steading") "coordinator"
                      "--state" #$state "--listen" #$listen
                      #$@(if settings
                             (list "--config"
                                   (plain-file "steading.toml"
                                               (toml-text settings)))
                             '()))
                #:user #$user
                #:group #$group
                #:directory #$state
                ;; One connection is one file; a thousand agents have five each.
                #:resource-limits '((nofile 65536 65536))
                #:log-file #$log-file))
      ;; SIGTERM: agents are told, and go on building meanwhile.
      (stop #~(make-kill-destructor #:grace-period 60))))))

(define (service-accounts user group home)
  (list (user-group (name group) (system? #t))
        (user-account
         (name user)
         (group group)
         (system? #t)
         (comment "Steading")
         (home-directory home)
         (shell (file-append shadow "/sbin/nologin")))))

(define (state-activation user state mode)
  #~(begin
      (use-modules (guix build utils))
      (let ((user (getpw #$user)))
        (mkdir-p #$state)
        (chown #$state (passwd:uid user) (passwd:gid user))
        (chmod #$state #$mode))))

(define steading-coordinator-service-type
  (service-type
   (name 'steading-coordinator)
   (extensions
    (list (service-extension shepherd-root-service-type
                             steading-coordinator-shepherd-services)
          (service-extension
           account-service-type
           (match-record-lambda <steading-coordinator-configuration>
               (user group state)
             (service-accounts user group state)))
          (service-extension
           activation-service-type
           (match-record-lambda <steading-coordinator-configuration>
               (user state)
             ;; Others may pass through to public/; what is private has its own
             ;; permissions.
             (state-activation user state #o755)))))
   (default-value (steading-coordinator-configuration))
   (description "Run the coordinator of a build farm: it owns the queue and the
published nars, and listens on one SSH port.")))


;;;
;;; An agent.
;;;

(define-record-type* <steading-agent-configuration>
  steading-agent-configuration make-steading-agent-configuration
  steading-agent-configuration?
  (package       steading-agent-configuration-package ;file-like
                 (default steading))
  (user          steading-agent-configuration-user ;string
                 (default "steading-agent"))
  (group         steading-agent-configuration-group ;string
                 (default "steading-agent"))
  (state         steading-agent-configuration-state ;string
                 (default "/var/lib/steading-agent"))
  (coordinator   steading-agent-configuration-coordinator) ;"HOST:PORT"
  ;; The coordinator's public host key, as run/host_key.pub there has it.
  (host-key      steading-agent-configuration-host-key) ;string | file-like
  ;; More of `agent.toml', see `src/agent/settings.rs':
  ;; ((max-parallel-builds . 4) (systems . ("x86_64-linux"))).
  (settings      steading-agent-configuration-settings ;alist
                 (default '()))
  (log-file      steading-agent-configuration-log-file ;string
                 (default "/var/log/steading-agent.log")))

(define (steading-agent-shepherd-services config)
  (match-record config <steading-agent-configuration>
    (package user group state coordinator host-key settings log-file)
    (list
     (shepherd-service
      (documentation "An agent of a build farm.")
      (provision '(steading-agent))
      (requirement '(user-processes networking guix-daemon))
      (start #~(make-forkexec-constructor
                (list #$(file-append package "/bin/steading") "agent"
                      "--state" #$state
                      "--coordinator" #$coordinator
                      "--host-key" #$host-key
                      "--config" #$(plain-file "agent.toml"
                                               (toml-text settings)))
                #:user #$user
                #:group #$group
                #:directory #$state
                #:resource-limits '((nofile 65536 65536))
                #:log-file #$log-file))
      ;; Attempts lead sessions of their own, so this does not reach them: they
      ;; outlive the agent, and the next one adopts them.
      (stop #~(make-kill-destructor))))))

(define steading-agent-service-type
  (service-type
   (name 'steading-agent)
   (extensions
    (list (service-extension shepherd-root-service-type
                             steading-agent-shepherd-services)
          (service-extension
           account-service-type
           (match-record-lambda <steading-agent-configuration>
               (user group state)
             (service-accounts user group state)))
          (service-extension
           activation-service-type
           (match-record-lambda <steading-agent-configuration>
               (user state)
             (state-activation user state #o700)))))
   (description "Run an agent of a build farm: it dials out to the coordinator
with its SSH key and builds what that gives it.")))


;;;
;;; A guix-daemon that builds on the farm.
;;;

(define-record-type* <steading-guix-configuration>
  steading-guix-configuration make-steading-guix-configuration
  steading-guix-configuration?
  (package          steading-guix-configuration-package ;file-like
                    (default steading))
  ;; The words for ssh: "-i /etc/guix/steading-key -p 2222 farm.example.org".
  (coordinator      steading-guix-configuration-coordinator) ;string
  ;; run/signing-guix.pub of the coordinator.
  (signing-keys     steading-guix-configuration-signing-keys ;list of file-like
                    (default '()))
  (openssh          steading-guix-configuration-openssh ;file-like
                    (default openssh))
  (guix             steading-guix-configuration-guix ;file-like
                    (default guix))
  ;; More of `guix.toml', see `src/guix_program/settings.rs':
  ;; ((unreachable . "wait") (features . ("kvm"))).
  (settings         steading-guix-configuration-settings ;alist
                    (default '())))

(define (steading-guix-etc config)
  (match-record config <steading-guix-configuration>
    (package coordinator openssh guix settings)
    `(("steading/guix.toml"
       ,(mixed-text-file
         "guix.toml"
         (toml-text `((coordinator . ,coordinator)))
         ;; A daemon has neither of them in its PATH.
         "ssh = \"" openssh "/bin/ssh\"\n"
         "guix = \"" guix "/bin/guix\"\n"
         (toml-text settings)))
      ("steading/steading-guix" ,(file-append package "/bin/steading-guix")))))

(define steading-guix-service-type
  (service-type
   (name 'steading-guix)
   (extensions
    (list (service-extension etc-service-type steading-guix-etc)
          (service-extension
           guix-service-type
           (match-record-lambda <steading-guix-configuration>
               (signing-keys)
             (guix-extension (authorized-keys signing-keys))))))
   (description "Let this machine's guix-daemon build on a farm and take from it
what it has.  The daemon needs @code{guix-configuration-with-steading}, too.")))

(define (guix-configuration-with-steading config)
  "Return CONFIG, a <guix-configuration>, of a daemon that calls Steading where
it would call guix."
  (guix-configuration
   (inherit config)
   (environment (cons "GUIX=/etc/steading/steading-guix"
                      (guix-configuration-environment config)))))
